import itertools

import pytest
import torch
import torch.nn.functional as F
from symmetry_specs import mlp, random_state, residual
from torch.func import functional_call

from regraft.errors import DivergenceError, InputError
from regraft.symmetry.match.match import match
from regraft.symmetry.match.straight_through import (
    StraightThrough,
    StraightThroughConfig,
    straight_through,
)
from regraft.train import load_state, save_state


class Source:
    """Batches of normal numbers with labels by a rule; another order in every epoch."""

    def __init__(self, shape, n=64, batch=16, seed=0, classes=3):
        g = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, *shape, generator=g)
        self.y = self.x.flatten(1)[:, :classes].argmax(1)
        self.batch = batch

    def __len__(self):
        return len(self.x) // self.batch

    def batches(self, epoch, *, start=0, rank=0, world=1):
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(epoch))
        for part in order.split(self.batch)[start:]:
            yield self.x[part], self.y[part], len(part)


def setting(seed=0):
    model, spec = mlp([6, 10, 9, 3])
    a, b = (random_state(model, seed + i, dtype=torch.float32) for i in range(2))
    return spec, model, a, b


def reference(spec, model, a, b, source, config, factor=lambda step: 1.0):
    """The card's algorithm, literally: autograd through a straight-through value."""
    names = [k for k, _ in model.named_parameters()]
    latent = {k: a[k].clone().requires_grad_() for k in names}
    optimizer = torch.optim.SGD(
        latent.values(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
    now, losses, permutations = spec.identity(), [], []
    batches = itertools.chain.from_iterable(source.batches(e) for e in itertools.count())
    for step, (x, y, _) in enumerate(itertools.islice(batches, config.steps)):
        if step % config.match_every == 0:
            target = {k: v.detach() for k, v in latent.items()}
            now = match(spec, {**a, **target}, b, init=now, seed=config.seed + step).permutation
        moved = spec.apply(b, now)
        middle = {k: 0.5 * a[k] + 0.5 * (moved[k] + latent[k] - latent[k].detach()) for k in names}
        loss = F.cross_entropy(functional_call(model, middle, x), y)
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor(step)
        optimizer.step()
        losses.append(loss.item())
        permutations.append(now)
    return losses, permutations, latent


@pytest.mark.parametrize("match_every", [1, 3])
def test_is_the_papers_algorithm(match_every):
    spec, model, a, b = setting()
    source = Source((6,))
    config = StraightThroughConfig(steps=12, lr=0.3, match_every=match_every)

    def factor(step):
        return 1.0 if step < 6 else 0.1

    losses, permutations, latent = reference(spec, model, a, b, source, config, factor)
    run = StraightThrough(spec, model, a, b, source, config, schedule=factor)
    run.run()
    assert [row["loss"] for row in run.trace] == pytest.approx(losses, rel=1e-5)
    assert all(torch.equal(run.at.now[k], p) for k, p in permutations[-1].items())
    for name, value in latent.items():
        torch.testing.assert_close(run.latent[name], value.detach(), rtol=1e-4, atol=1e-5)


def test_the_best_is_better_than_weight_matching_on_whole_passes():
    spec, model, a, b = setting(4)
    source, held_out = Source((6,)), Source((6,), seed=1)
    config = StraightThroughConfig(steps=40, lr=1.0)
    run = StraightThrough(spec, model, a, b, source, config, score=held_out)
    best = run.run()

    def loss(permutation):
        moved = spec.apply(b, permutation)
        middle = {k: (a[k] + moved[k]) / 2 for k in a}
        with torch.no_grad():
            return F.cross_entropy(functional_call(model, middle, held_out.x), held_out.y).item()

    assert run.at.best_score == pytest.approx(loss(best), rel=1e-5)
    assert loss(best) < loss(match(spec, a, b).permutation)
    scored = [row["score"] for row in run.trace if "score" in row]
    assert len(scored) == 40 // len(source)
    assert run.at.best_score == min(scored)


def test_going_on_equals_never_having_stopped(tmp_path):
    spec, model, a, b = setting(2)
    source = Source((6,))
    config = StraightThroughConfig(steps=11, lr=0.5, score_every=3)
    whole = StraightThrough(spec, model, a, b, source, config)
    wanted = whole.run()

    first = StraightThrough(spec, model, a, b, source, config)
    first.run(until=5)
    save_state(tmp_path / "state.safetensors", first.state_dict())
    first.run()  # what was saved is not of later steps
    second = StraightThrough(spec, model, a, b, source, config)
    second.load_state_dict(load_state(tmp_path / "state.safetensors"))
    assert second.at.step == 5
    got = second.run()
    assert all(torch.equal(got[k], p) for k, p in wanted.items())
    assert second.trace == whole.trace[5:]
    for name, value in whole.latent.items():
        assert torch.equal(second.latent[name], value)


def test_a_network_with_batch_norm_uses_batch_statistics_and_keeps_its_own():
    model, spec, _ = residual()
    a, b = (random_state(model, i, dtype=torch.float32) for i in range(2))
    source = Source((3, 2, 2))
    config = StraightThroughConfig(steps=5, lr=0.1)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    one = StraightThrough(spec, model, a, b, source, config)
    one.run()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    # Running statistics have no say.
    a["norm.running_mean"] = a["norm.running_mean"] + 100
    two = StraightThrough(spec, model, a, b, source, config)
    two.run()
    assert one.trace == two.trace


def test_progress_and_another_loss():
    spec, model, a, b = setting()
    source = Source((6,))
    seen = []
    config = StraightThroughConfig(steps=4)
    run = StraightThrough(
        spec,
        model,
        a,
        b,
        source,
        config,
        loss=lambda out, y: F.mse_loss(out, F.one_hot(y, 3).float()),
    )
    run.run(progress=lambda step, steps, row: seen.append((step, steps, set(row))))
    assert seen == [(i, 4, {"loss"}) for i in (1, 2, 3)] + [(4, 4, {"loss", "score", "best"})]


def test_a_diverging_latent_network_is_named():
    spec, model, a, b = setting()
    config = StraightThroughConfig(steps=200, lr=1e30)
    with pytest.raises(DivergenceError, match="lower the learning rate"):
        straight_through(spec, model, a, b, Source((6,)), config)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"steps": 0}, "steps=0"),
        ({"match_every": 0}, "match_every=0"),
        ({"score_every": 0}, "score_every=0"),
        ({"lr": float("nan")}, "lr=nan"),
    ],
)
def test_wrong_values_are_named(wrong, text):
    spec, model, a, b = setting()
    with pytest.raises(InputError, match=text):
        straight_through(
            spec, model, a, b, Source((6,)), StraightThroughConfig(**{"steps": 1, **wrong})
        )


def test_no_batches():
    spec, model, a, b = setting()
    with pytest.raises(InputError, match="batches: there are none"):
        straight_through(spec, model, a, b, Source((6,), n=0), StraightThroughConfig(steps=1))


def test_batches_may_be_any_iterable_of_images_and_labels():
    spec, model, a, b = setting()
    source = Source((6,))
    config = StraightThroughConfig(steps=8)
    pairs = [(x, y) for x, y, _ in source.batches(0)]

    class Fixed(Source):
        def batches(self, epoch, *, start=0, rank=0, world=1):
            return super().batches(0, start=start)

    expected = straight_through(spec, model, a, b, Fixed((6,)), config)
    for batches in (pairs, iter(pairs), [[*p, "more"] for p in pairs]):
        now = straight_through(spec, model, a, b, batches, config, score=pairs)
        assert all(torch.equal(now[k], p) for k, p in expected.items())
    data = torch.utils.data.TensorDataset(source.x, source.y)
    loader = torch.utils.data.DataLoader(data, batch_size=16)
    assert set(straight_through(spec, model, a, b, loader, config)) == set(spec.groups)


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        (3, "batches: int is no series"),
        (torch.randn(4, 6), "batches: Tensor is no series"),
        ([torch.randn(4, 6)], r"a batch is Tensor; expected \(images, labels\)"),
        ([], "there are none"),
    ],
)
def test_what_are_no_batches_is_refused(batches, says):
    spec, model, a, b = setting()
    with pytest.raises(InputError, match=says):
        straight_through(spec, model, a, b, batches, StraightThroughConfig(steps=2))
