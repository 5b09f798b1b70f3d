"""What a transfer keeps, shares and measures while it goes on."""

import copy

import pytest
import torch
import torch.nn.functional as F
from symmetry_specs import mlp, plain, residual, spec_of
from torch import nn
from transfer_cases import Source, ends

from regraft.symmetry.spec.group import Group, Site
from regraft.symmetry.transfer.gradients import Gradients
from regraft.symmetry.transfer.run import clock
from regraft.symmetry.transfer.trajectory import Trajectory
from regraft.symmetry.transfer.transfer import METHODS, transfer


class Coded(nn.Sequential):
    """A perceptron with a constant that training leaves alone, and a counter."""

    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.register_buffer("code", torch.randn(3))

    def forward(self, x):
        return super().forward(x) + self.code


def coded():
    model = Coded().double()
    sites = [Site(f"{k}", 0, plain(8)) for k in ("0.weight", "0.bias")]
    sites += [
        Site(f"1.{k}", 0, plain(8)) for k in ("weight", "bias", "running_mean", "running_var")
    ]
    group = Group("0.weight", 8, (*sites, Site("3.weight", 1, plain(8))))
    return model, spec_of(model, [group])


@pytest.mark.parametrize("by", METHODS)
@pytest.mark.parametrize("warm_start", [True, False])
def test_a_caller_may_load_and_change_what_is_yielded(by, warm_start):
    model, spec = coded()
    a, b, other = ends(model)
    line = Trajectory.linear(a, b, steps=4, buffers=["code"])
    trained = {k: v + 0.1 * torch.sin(7 * v) if v.is_floating_point() else v for k, v in b.items()}
    options = {"by": by, "warm_start": warm_start, "workers": 1}

    def data():
        return Gradients(copy.deepcopy(model), Source((6,)))

    wanted = list(transfer(line, other, spec, data(), trained=trained, **options))
    wanted = copy.deepcopy([(w.weights, dict(w.permutation)) for w in wanted])
    # The network's own tensors are given, and every step is loaded into it.
    model.load_state_dict(other)
    other_model = copy.deepcopy(model)
    other_model.load_state_dict(trained)
    steps = transfer(
        line, model.state_dict(), spec, data(), trained=other_model.state_dict(), **options
    )
    with torch.no_grad():
        for p in other_model.parameters():
            p.zero_()
    for (weights, permutation), found in zip(wanted, steps, strict=True):
        assert all(torch.equal(found.weights[k], v) for k, v in weights.items())
        assert all(torch.equal(found.permutation[k], v) for k, v in permutation.items())
        model.load_state_dict(found.weights)
        for tensor in (*found.weights.values(), *found.permutation.values()):
            tensor.zero_()
    # Nor does it reach what the trajectory was made of.
    assert all(torch.equal(line.state(0)[k], v) for k, v in a.items())
    again = list(transfer(line, other, spec, data(), trained=trained, **options))
    for (weights, _), found in zip(wanted, again, strict=True):
        assert all(torch.equal(found.weights[k], v) for k, v in weights.items())


def kept(steps):
    """Bytes of the gradients that a transfer by GMT holds, every storage once."""
    run, pairs = (steps.gi_frame.f_locals[k] for k in ("self", "pairs"))
    states = [*run.kept.values()]
    for several in pairs.pairs.stacked.values():
        states += [state for pair in several for state in pair]
    tensors = {id(v): v for state in states for v in state.values()}.values()
    return sum(
        {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in tensors}.values()
    )


def test_gmt_keeps_no_more_than_it_says():
    model, spec = mlp([6, 20, 20, 3])
    a, b, other = ends(model, dtype=torch.float32)
    line = Trajectory.linear(a, b, steps=4)
    data = Gradients(model, Source((6,), dtype=torch.float32))
    sizes = {k: v.numel() for k, v in other.items() if k != "4.bias"}  # which nothing permutes
    moved, inner = sum(sizes.values()), sizes["2.weight"]
    for store, width in ((None, 4), (torch.bfloat16, 2)):
        steps = transfer(line, other, spec, data, by="gmt", store=store)
        for t, _ in enumerate(steps, start=1):
            # The source's at t points, the target's first, and one matrix of its others.
            assert kept(steps) == width * (t * moved + moved + (t - 1) * inner)
    for t, _ in enumerate(fast := transfer(line, other, spec, data, by="fgmt"), start=1):
        assert kept(fast) == 4 * 2 * t * inner


def test_both_networks_gradients_are_rounded_alike_at_every_use():
    model, spec = mlp([6, 12, 11, 3])
    model[1] = model[3] = nn.Tanh()
    model.double()
    a, b, _ = ends(model)
    hidden = spec.random(1)
    line, target = Trajectory.linear(a, b, steps=4), spec.apply(a, hidden)
    data = Gradients(model, Source((6,)))
    for found in transfer(line, target, spec, data, by="gmt", store=torch.bfloat16):
        assert all(torch.equal(found.permutation[k], p) for k, p in hidden.items())
        assert found.cosine == pytest.approx(1.0, abs=1e-7)  # sums are in float32


class Branch(nn.Module):
    """A layer, and a branch beside it that can die without the layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Linear(6, 8), nn.Linear(8, 5)
        self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        return self.head(x + self.second(F.relu(self.first(x))))


def branch():
    model = Branch().double()
    stream = [Site(f"{k}", 0, plain(8)) for k in ("stem.weight", "stem.bias", "second.weight")]
    stream += [Site("second.bias", 0, plain(8)), Site("first.weight", 1, plain(8))]
    inner = [Site("first.weight", 0, plain(5)), Site("first.bias", 0, plain(5))]
    groups = [
        Group("stem.weight", 8, (*stream, Site("head.weight", 1, plain(8)))),
        Group("first.weight", 5, (*inner, Site("second.weight", 1, plain(5)))),
    ]
    return model, spec_of(model, groups)


@pytest.mark.parametrize("by", ["gmt", "fgmt"])
@pytest.mark.parametrize("side", ["source", "target"])
def test_a_dead_layer_is_told_and_stays_in_place(by, side):
    model, spec = branch()
    a, b, other = ends(model)
    gone = {"first.bias": torch.full((5,), -1e3, dtype=torch.float64)}
    if side == "target":
        other = {**other, **gone}
    else:
        a, b = {**a, **gone}, {**b, **gone}
    line = Trajectory.linear(a, b, steps=3)
    start = spec.random(3)
    data = Gradients(model, Source((6,)))
    for init in (None, start):
        for found in transfer(line, other, spec, data, by=by, init=init):
            assert found.dead == ("first.weight",)
            stays = (init or spec.identity())["first.weight"]
            assert torch.equal(found.permutation["first.weight"], stays)
            assert found.cosine > found.cosine_before
    alive = ends(model)[2] if side == "target" else ends(model)[1]
    assert not torch.equal(alive["first.bias"], gone["first.bias"])


def test_the_clock_waits_for_the_device(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "synchronize", asked.append)
    assert clock(None) <= clock(torch.device("cpu"))
    assert asked == []
    clock(torch.device("cuda", 1))
    assert asked == [torch.device("cuda", 1)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("by", METHODS)
def test_on_a_gpu_it_is_what_it_is_on_the_cpu(by):
    model, spec, _ = residual()
    model = model.double()
    a, b, other = ends(model)
    line = Trajectory.linear(a, b, steps=3)
    trained = {k: v + 0.1 * torch.sin(7 * v) if v.is_floating_point() else v for k, v in b.items()}
    trained = {k: v.abs() if k.endswith("running_var") else v for k, v in trained.items()}
    found = {}
    for device in ("cpu", "cuda"):
        source = Source((3, 2, 2))
        source.x, source.y = source.x.to(device), source.y.to(device)
        data = Gradients(copy.deepcopy(model).to(device), source, count=2)
        found[device] = list(
            transfer(line, other, spec, data, by=by, trained=trained, statistics=source)
        )
    for one, two in zip(found["cpu"], found["cuda"], strict=True):
        assert all(torch.equal(one.permutation[k], two.permutation[k]) for k in spec.groups)
        for name, tensor in two.weights.items():
            assert tensor.device.type == "cuda"
            torch.testing.assert_close(tensor.cpu(), one.weights[name])
        if by != "naive":
            assert two.objective == pytest.approx(one.objective, rel=1e-9)
