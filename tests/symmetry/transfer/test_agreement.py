import hashlib
import math

import pytest
import torch
from symmetry_specs import mlp
from torch import nn
from transfer_cases import Source, ends, gradient, setting

from regraft.errors import InputError
from regraft.symmetry.transfer.agreement import agreement
from regraft.symmetry.transfer.gradients import Gradients
from regraft.symmetry.transfer.trajectory import Trajectory
from regraft.symmetry.transfer.transfer import transfer


class Noise(Gradients):
    """Gradients of the two networks that have nothing to do with each other."""

    def at(self, states, names, draw, *, skip=0):
        found = []
        for name in names:
            key = hashlib.blake2b(f"{name}/{draw}/{skip}".encode(), digest_size=7).digest()
            g = torch.Generator().manual_seed(int.from_bytes(key, "big"))
            own = self.model.named_parameters()
            found.append({k: torch.randn(p.shape, generator=g, dtype=p.dtype) for k, p in own})
        return found


@pytest.mark.parametrize("by", ["fgmt", "gmt"])
def test_matched_noise_does_not_pass(by):
    spec, model, line, target, source = setting(0, widths=(20, 30, 30, 10))
    source = Source((20,), classes=10)
    data = Noise(model, source, count=2)
    *_, last = transfer(line, target, spec, data, by=by)
    assert last.cosine > last.cosine_before + 0.1  # what was maximised says that it helps
    size = sum(v.numel() for k, v in target.items() if k in spec.by_tensor)
    for at in (0, 2):
        found = agreement(line, target, spec, data, last.permutation, at=at)
        assert abs(found.cosine) < 4 / math.sqrt(size)
        assert abs(found.plain) < 4 / math.sqrt(size)
        assert found.gain == found.cosine - found.plain


@pytest.mark.parametrize("at", [0, 2, -1])
def test_of_a_permuted_copy_it_is_one(at):
    model, spec = mlp([6, 12, 11, 3])
    model[1] = model[3] = nn.Tanh()
    model.double()
    a, b, _ = ends(model)
    line = Trajectory.linear(a, b, steps=3)
    hidden = spec.random(4)
    target = spec.apply(a, hidden)
    data = Gradients(model, Source((6,)))
    found = agreement(line, target, spec, data, hidden, at=at, draws=2)
    assert found.cosine == pytest.approx(1.0, abs=1e-12)
    assert found.gain > 0.1
    assert found.count == (4 if at == 0 else 6)
    same = agreement(line, target, spec, data, spec.identity(), at=at)
    assert same.cosine == same.plain
    assert found.to_dict() == {
        "cosine": found.cosine, "plain": found.plain, "gain": found.gain, "count": found.count,
    }  # fmt: skip


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_is_the_formula_on_batches_that_no_transfer_draws(at, scale):
    spec, model, line, target, source = setting(2)
    data = Gradients(model, source, count=2)
    drawn = []
    batches = source.batches
    source.batches = lambda epoch, **options: drawn.append(epoch) or batches(epoch, **options)
    *_, last = transfer(line, target, spec, data, by="gmt", redraw=True, scale=scale)
    matched = set(drawn)
    drawn.clear()
    pi = last.permutation
    found = agreement(line, target, spec, data, pi, at=at, draws=3, scale=scale)
    assert matched & set(drawn) <= {0}  # where the network is checked
    starts = [epoch for epoch in drawn if epoch and epoch % (1 << 20) == 0]
    assert len(starts) == 3
    source.batches = batches
    delta = {k: scale * (v - line.initial[k]) for k, v in line.state(at).items()}
    sums = {True: [0.0] * 3, False: [0.0] * 3}
    for epoch in starts:
        # An epoch has three batches: the first two are left out, the fourth is the next epoch's.
        some = [b[:2] for b in [list(batches(epoch))[2], next(batches(epoch + 1))]]
        source_gradient = gradient(model, line.state(at), some)
        for permuted, own in sums.items():
            now = pi if permuted else spec.identity()
            moved = spec.apply(delta, now)
            mine = gradient(model, {k: target[k] + moved[k] for k in target}, some)
            for k in mine:
                if k not in spec.by_tensor:
                    continue
                x, y = mine[k], spec.apply_to(k, source_gradient[k], now)
                for i, value in enumerate(((x * y).sum(), (x * x).sum(), (y * y).sum())):
                    own[i] += float(value)
    wanted = {k: v[0] / math.sqrt(v[1] * v[2]) for k, v in sums.items()}
    assert found.cosine == pytest.approx(wanted[True], rel=1e-9)
    assert found.plain == pytest.approx(wanted[False], rel=1e-9)


def test_a_loader_that_does_not_shuffle_gives_other_batches():
    spec, model, line, target, source = setting(1)
    rest = [(source.x[i : i + 32], source.y[i : i + 32]) for i in (32, 64)]
    loader = [(source.x[:32], source.y[:32]), *rest]
    pi = spec.random(1)
    found = agreement(line, target, spec, Gradients(model, loader), pi)
    a, b = (gradient(model, s, rest[:1]) for s in (target, dict(line.initial)))
    x, y = (
        torch.cat([g[k].flatten() for k in a if k in spec.by_tensor])
        for g in (a, spec.apply(b, pi))
    )
    assert found.cosine == pytest.approx(float(x @ y / (x.norm() * y.norm())), rel=1e-9)


def test_wrong_input_is_refused():
    spec, model, line, target, source = setting()
    data = Gradients(model, source)
    one = spec.identity()
    few = {**one, "0.weight": torch.arange(4)}
    without = {k: v for k, v in target.items() if k != "4.bias"}
    for match_, args, options in (
        ("draws=0: expected at least 1", (line, target, spec, data, one), {"draws": 0}),
        (r"at=5: the trajectory has 5 states.*0 to 4", (line, target, spec, data, one), {"at": 5}),
        (r"permutation of .0\.weight", (line, target, spec, data, few), {}),
        (r"the target has no tensor '4\.bias'", (line, without, spec, data, one), {}),
        ("label 3 and the network 3 outputs", (line, target, spec,
         Gradients(model, Source((6,), classes=4)), one), {}),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match_):
            agreement(*args, **options)
