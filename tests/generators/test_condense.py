import math
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regraft.data import ImageSet, TensorLoader, channel_moments, load_known
from regraft.data.coreset import coreset
from regraft.errors import DivergenceError, InputError
from regraft.generators import CondenseConfig, CondensedSet, Condenser, condense
from regraft.generators.networks import freeze_norms_
from regraft.models import MLP, ConvSmall
from regraft.protocols import Stepper
from regraft.train import evaluate

QUICK = {"restarts": 3, "outer": 3, "inner": 2, "real_batch": 8, "norm_batch": 4}


def image_set(counts=(20, 20, 20), seed=0, side=6):
    """Images of which each class has a bright column of its own, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    pixels = torch.randint(0, 120, (len(labels), 1, side, side), generator=generator)
    for k in range(len(counts)):
        pixels[labels == k, :, :, k + 1] += 120
    return ImageSet(pixels.to(torch.uint8), labels, len(counts))


def mlp():
    return MLP(36, (8,), 3)


def double_conv():
    return ConvSmall(3, channels=1, image_size=6, width=0.5).double()


def make(method="dc", *, source=None, network=mlp, per_class=2, seed=1, **change):
    settings = {**QUICK, "lr_images": 0.5, **change}
    if method == "dm":
        settings = {k: v for k, v in settings.items() if k not in ("outer", "inner")}
    source = source or image_set()
    config = CondenseConfig(**settings)
    return Condenser(source, network, per_class=per_class, method=method, config=config, seed=seed)


def slow_condensation(fast, restarts):
    """Return the images after `restarts`, by torch's optimiser and loops over classes and rows."""
    c, classes = fast.config, fast.real.num_classes
    images = fast.images.clone().requires_grad_()
    optimizer = torch.optim.SGD([images], lr=c.lr_images, momentum=c.momentum)
    labels = torch.arange(classes).repeat_interleave(fast.per_class)
    for restart in range(restarts):
        network = fast._network(restart)
        weights = [p for p in network.parameters() if p.ndim > 1]
        trained = torch.optim.SGD(network.parameters(), lr=c.lr_network)
        for outer in range(c.outer):
            event = restart * c.outer + outer
            batches = [
                fast.real.batch(k, c.real_batch, event).to(images.dtype) for k in range(classes)
            ]
            freeze_norms_(network, torch.cat([b[: c.norm_batch] for b in batches]))
            loss = torch.zeros((), dtype=images.dtype)
            for k in range(classes):
                rows = []
                for x, graph in ((batches[k], False), (images[k], True)):
                    found = F.cross_entropy(network(x), torch.full((len(x),), k))
                    layers = torch.autograd.grad(found, weights, create_graph=graph)
                    rows.append([r.flatten() for layer in layers for r in layer])
                for a, b in zip(*rows, strict=True):
                    norms = a.norm() * b.norm()
                    loss = loss + 1 - ((a @ b) / norms if norms > 0 else 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if outer < c.outer - 1:
                for _ in range(c.inner):
                    trained.zero_grad()
                    F.cross_entropy(network(images.detach().flatten(0, 1)), labels).backward()
                    trained.step()
    return images.detach()


@pytest.mark.parametrize("network", [lambda: mlp().double(), double_conv])
def test_it_is_the_algorithm_step_by_step(network):
    fast = make(network=network)
    expected = slow_condensation(make(network=network), 2)
    before = fast.images.clone()
    fast.step()
    fast.step()
    assert not torch.allclose(before, expected, atol=1e-2)
    torch.testing.assert_close(fast.images, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", ["dc", "dsa"])
def test_classes_at_once_or_one_by_one_give_the_same(method):
    fast, slow = (make(method, network=double_conv, vectorise=v) for v in (True, False))
    for condenser in (fast, slow):
        condenser.run()
    torch.testing.assert_close(fast.images, slow.images, rtol=1e-7, atol=1e-9)
    assert fast.losses == pytest.approx(slow.losses)


@pytest.mark.parametrize("method", ["dc", "dsa", "dm"])
def test_interrupted_anywhere_it_ends_with_the_same_bits(method, tmp_path):
    network = ConvSmall if method == "dsa" else MLP

    def new():
        return make(method, network=mlp if network is MLP else lambda: double_conv().float())

    whole = new()
    whole.run()
    path = tmp_path / "state.safetensors"
    for done in (1, 2, 3):
        part = new()
        part.run(checkpoint=path, max_seconds=0)
        assert len(part.losses) == done
    assert part.done
    assert torch.equal(part.images, whole.images)
    assert part.losses == whole.losses
    # A finished one is only read.
    last = new()
    last.run(checkpoint=path, progress=lambda *_: pytest.fail("it was finished"))
    assert torch.equal(last.images, whole.images)


@pytest.mark.parametrize("seconds", [0.0, 100.0])
def test_what_was_not_saved_is_done_again(seconds, tmp_path):
    class Stop(Exception):  # noqa: N818
        pass

    def stop_at(restart):
        def progress(done, *_):
            if done == restart:
                raise Stop

        return progress

    whole = make("dsa")
    whole.run()
    for restart in (1, 2, 3):
        with pytest.raises(Stop):
            make("dsa").run(
                checkpoint=tmp_path / "state.safetensors",
                checkpoint_seconds=seconds,
                progress=stop_at(restart if seconds == 0 else 2),
            )
    last = make("dsa")
    last.run(checkpoint=tmp_path / "state.safetensors")
    assert torch.equal(last.images, whole.images)
    assert last.losses == whole.losses


def test_the_state_is_one_of_a_stepper(tmp_path):
    whole, part = make(), make()
    assert isinstance(whole, Stepper)
    whole.step()
    state = whole.state_dict()
    whole.step()
    part.load_state_dict(state)
    part.step()
    assert torch.equal(part.images, whole.images)


@pytest.mark.parametrize("method", ["dc", "dsa", "dm"])
def test_a_result_belongs_to_its_seed_and_leaves_the_generator_alone(method):
    def found(seed, noise):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        condenser = make(method, seed=seed)
        condenser.run()
        assert torch.equal(torch.get_rng_state(), before)
        return condenser.result().images

    assert torch.equal(found(1, 0), found(1, 9))
    assert not torch.allclose(found(1, 0), found(2, 0), atol=1e-3)


def test_the_order_of_the_classes_does_not_matter():
    # Each class by itself, as an untrained embedding knows none.
    source, order = image_set((20, 16, 12)), torch.tensor([1, 2, 0])
    other = ImageSet(source.images, order[source.labels], 3)
    config = CondenseConfig(restarts=4, real_batch=8)
    options = {"method": "dm", "per_class": 2, "config": config}
    first = condense(source, mlp, classes=("ant", "bee", "cat"), **options)
    moved = condense(other, mlp, classes=("cat", "ant", "bee"), **options)
    for k in range(3):
        mine = first.images[first.labels == k]
        theirs = moved.images[moved.labels == order[k]]
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["dc", "dsa", "dm"])
def test_networks_learn_the_classes_from_it(method):
    source = image_set((60, 60, 60))
    test = image_set((40, 40, 40), seed=1)
    lr, restarts = {"dc": (0.5, 20), "dsa": (0.1, 20), "dm": (0.03, 200)}[method]
    condenser = make(
        method, source=source, per_class=1, restarts=restarts, outer=2, real_batch=60, lr_images=lr,
        init="noise", transforms=None if method == "dc" else ("color", "cutout"),
    )  # fmt: skip
    noise = accuracy(condenser.result(), test)
    condenser.run()
    condensed = condenser.result()
    assert accuracy(condensed, test) > max(75, noise + 25)
    if method != "dsa":  # whose distance depends on the transform
        assert sum(condenser.losses[-3:]) < 0.8 * sum(condenser.losses[:3])
    # What tells the classes apart is in the images.
    columns = condensed.images.mean((1, 2))[:, 1:4]
    assert columns.argmax(1).tolist() == [0, 1, 2]


def accuracy(condensed, test):
    torch.manual_seed(0)
    network = mlp()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    source = condensed.loader(batch_size=100, seed=0)
    for epoch in range(60):
        for x, y, _ in source.batches(epoch):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    loader = TensorLoader(
        test, batch_size=200, mean=condensed.mean, std=condensed.std, shuffle=False,
        augment="none", seed=0,
    )  # fmt: skip
    x, y, _ = next(loader.batches(0))
    return 100 * (network(x).argmax(1) == y).float().mean().item()


def test_noise_is_standard_and_real_images_are_real():
    source = image_set()
    noise = make(source=source, per_class=20).images
    assert abs(noise.mean().item()) < 0.05
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    real = make(source=source, init="real", lr_images=1e-30, restarts=1)
    real.run()
    found = (real.result().images * 255).round().to(torch.uint8)
    for image, label in zip(found, real.result().labels, strict=True):
        own = source.images[source.labels == label]
        assert (own == image).all((1, 2, 3)).any()


def test_the_result_says_how_it_was_made(tmp_path):
    source = image_set()
    mean, std = channel_moments(source.images)
    seen = []
    condensed = condense(
        source, mlp, per_class=2, config=CondenseConfig(**QUICK), classes=("ant", "bee", "cat"),
        seed=4, progress=lambda *row: seen.append(row),
    )  # fmt: skip
    assert (condensed.mean, condensed.std, condensed.method) == (mean, std, "dc")
    assert condensed.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert condensed.classes == ("ant", "bee", "cat")
    assert condensed.about["seed"] == 4
    assert condensed.about["restarts"] == 3
    assert condensed.about["settings"]["lr_images"] == 0.1
    assert [(a, b) for a, b, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert condensed.about["loss"] == seen[-1][2]["loss"]
    condensed.save(tmp_path / "c.safetensors")
    assert torch.equal(CondensedSet.load(tmp_path / "c.safetensors").images, condensed.images)


def test_pixels_may_be_left_as_they_are():
    found = condense(
        image_set(), mlp, per_class=2, mean=(0.0,), std=(1.0,), config=CondenseConfig(**QUICK)
    )
    assert (found.mean, found.std) == ((0.0,), (1.0,))


def test_batches_can_be_the_source():
    source = image_set()
    mean, std = channel_moments(source.images)
    options = {"per_class": 2, "config": CondenseConfig(**QUICK)}
    loader = TensorLoader(
        source, batch_size=7, mean=mean, std=std, shuffle=False, augment="none", seed=0
    )
    found = condense(loader, mlp, mean=mean, std=std, **options)
    assert torch.equal(found.images, condense(source, mlp, **options).images)
    with pytest.raises(InputError, match="a TensorLoader does not tell them"):
        condense(loader, mlp, **options)


def test_images_that_run_away_name_their_step():
    for lr in (1e30, 1e3):
        condenser = make(lr_images=lr, restarts=50)
        with pytest.raises(
            DivergenceError, match=r"ran away at restart \d+, step \d.*: lower lr_im"
        ):
            condenser.run()

    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return self.inner(x) + math.nan

    with pytest.raises(
        DivergenceError, match=r"restart 1, step 1, to nan deviations .* loss of nan"
    ):
        make(network=Bad).step()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_class": 0}, "--per-class 0"),
        ({"per_class": 13}, r"--per-class 13: class '2' has 12 image\(s\); ask for at most 12"),
        ({"method": "kip"}, "--method kip"),
        ({"network": lambda: MLP(36, (8,), 4)}, r"expected \[2, 3\], a logit for each class"),
        ({"network": lambda: None}, "returned a NoneType"),
        ({"classes": ("ant",)}, "expected 3, one for each class"),
        (
            {"method": "dm", "network": lambda: nn.Sequential(nn.Conv2d(1, 3, 6), nn.Flatten())},
            "no linear classifier",
        ),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    options = {"network": mlp, "per_class": 1, "source": image_set((20, 16, 12)), **change}
    with pytest.raises(InputError, match=message):
        condense(options.pop("source"), options.pop("network"), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "seed was 1, now 2"),
        ({"restarts": 4}, "restarts was 3, now 4"),
        ({"method": "dsa"}, "method was 'dc', now 'dsa'"),
        ({"source": image_set(seed=9)}, "images was"),
        ({"network": lambda: MLP(36, (9,), 3)}, "network was"),
    ],
)
def test_a_checkpoint_of_another_condensation_is_refused(change, message, tmp_path):
    path = tmp_path / "state.safetensors"
    same = {"mean": (0.3,), "std": (0.2,)}

    def new(source=None, network=mlp, method="dc", seed=1, restarts=3):
        config = CondenseConfig(**{**QUICK, "restarts": restarts})
        return Condenser(
            source or image_set(), network, per_class=1, method=method, config=config, seed=seed,
            **same,
        )  # fmt: skip

    new().run(checkpoint=path, max_seconds=0)
    with pytest.raises(InputError, match=f"of another condensation.*{message}"):
        new(**change).run(checkpoint=path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="damaged"):
        new().run(checkpoint=path)


@pytest.mark.data
@pytest.mark.slow
def test_ten_condensed_digits_of_a_class_teach_more_than_ten_random_ones():
    root = os.environ.get("REGRAFT_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("REGRAFT_DATA names no folder with the benchmark data sets")
    known = load_known("mnist", root, download=False)
    mean, std = channel_moments(known.train.images)
    config = CondenseConfig(restarts=10, init="real")
    condensed = condense(known.train, paper_mlp, per_class=10, config=config, seed=1)
    options = {"batch_size": 100, "mean": mean, "std": std, "augment": "none"}
    test = TensorLoader(known.test, shuffle=False, seed=0, **{**options, "batch_size": 1000})
    scores = {"condensed": [], "random": []}
    for seed in range(3):
        rows = coreset(known.train, per_class=10, seed=seed)
        random = TensorLoader(known.train.subset(rows), shuffle=True, seed=seed, **options)
        arms = {"condensed": condensed.loader(batch_size=100, seed=seed), "random": random}
        for arm, source in arms.items():
            torch.manual_seed(seed)
            network = train(paper_mlp(), source)
            scores[arm].append(evaluate(network, test)["accuracy"])
    assert min(scores["condensed"]) > max(scores["random"]) + 2


def paper_mlp():
    return MLP(784, (128, 128), 10)


def train(network, source, steps=300):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(steps):
        for x, y, _ in source.batches(epoch):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    return network
