import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from symmetry_specs import mlp, residual, zoo
from torch import nn
from transfer_cases import Source, ends, gradient, setting

from regraft.errors import DivergenceError, InputError
from regraft.symmetry.match.match import match
from regraft.symmetry.merge.repair import reset_batch_norm_
from regraft.symmetry.transfer.gradients import Gradients
from regraft.symmetry.transfer.recorder import TrajectoryRecorder
from regraft.symmetry.transfer.trajectory import Trajectory
from regraft.symmetry.transfer.transfer import METHODS, transfer


def twin(spec, model, line, target, source, *, count, all_pairs, init=None):
    """The card's algorithm literally: fresh copies, cold starts, every sum anew."""
    states = [state for _, state in line]
    now, kept, found = spec.identity(), [], []
    for s in range(1, len(states)):
        kept = [] if all_pairs else kept
        for t in range(s) if all_pairs else [s - 1]:
            moved = spec.apply({k: v - states[0][k] for k, v in states[t].items()}, now)
            point = {k: target[k] + moved[k] for k in target}
            batches = [b[:2] for b in itertools.islice(source.batches(t << 20), count)]
            kept.append((gradient(model, point, batches), gradient(model, states[t], batches)))
        a, b = zip(*kept, strict=True)
        now = match(spec, a, b, init=init or "grown", seed=s - 1, workers=1).permutation
        moved = spec.apply({k: v - states[0][k] for k, v in states[s].items()}, now)
        found.append((s, {k: target[k] + moved[k] for k in target}, now))
    return found


@pytest.mark.parametrize("by", ["gmt", "fgmt"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("grown", [True, False])
def test_is_the_papers_algorithm(by, seed, grown):
    spec, model, line, target, source = setting(seed)
    model[1] = model[3] = nn.Tanh()  # dead units could change places, which the last bit decides
    start = None if grown else spec.identity()
    every = by == "gmt"
    wanted = twin(spec, model, line, target, source, count=2, all_pairs=every, init=start)
    data = Gradients(model, source, count=2)
    steps = transfer(line, target, spec, data, by=by, warm_start=False, init=start, workers=1)
    for (s, weights, permutation), found in zip(wanted, steps, strict=True):
        step, own, perm, objective = found
        assert step == s
        assert all(torch.equal(perm[k], p) for k, p in permutation.items())
        for name in weights:
            torch.testing.assert_close(own[name], weights[name], rtol=1e-10, atol=1e-12)
        assert objective == found.objective


@pytest.mark.parametrize("by", ["gmt", "fgmt"])
@given(seed=st.integers(0, 10**6))
@settings(max_examples=10)
def test_a_permuted_copy_of_its_own_start_gets_the_trajectory_exactly(by, seed):
    model, spec = mlp([6, 12, 3])
    model[1] = nn.Tanh()  # no unit is without a gradient
    model.double()
    a, b, _ = ends(model, seed=seed % 100)
    line = Trajectory.linear(a, b, steps=3, spacing="cosine")
    hidden = spec.random(seed)
    target = spec.apply(a, hidden)
    data = Gradients(model, Source((6,)))
    for s, found in enumerate(transfer(line, target, spec, data, by=by), start=1):
        assert all(torch.equal(found.permutation[k], p) for k, p in hidden.items())
        wanted = spec.apply(line.state(s), hidden)
        assert all(torch.equal(found.weights[k], wanted[k]) for k in wanted)
        assert found.cosine == pytest.approx(1.0)


@pytest.mark.parametrize("name", list(zoo()))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_so_does_every_kind_of_network_from_its_initial_weights(name, dtype):
    model, spec, x = zoo()[name]
    model = model.to(dtype)
    a, b, _ = ends(model, dtype=dtype)
    hidden = spec.random(5)
    target = spec.apply(a, hidden)
    line = Trajectory.linear(a, b, steps=3)
    *_, start = transfer(line, target, spec, by="initial_weights")
    assert all(torch.equal(start.permutation[k], p) for k, p in hidden.items())
    data = Gradients(model, Source(tuple(x.shape[1:]), dtype=dtype))
    for by in ("gmt", "fgmt"):
        *_, found = transfer(line, target, spec, data, by=by, init=start.permutation)
        wanted = spec.apply(line.state(-1), hidden)
        assert all(torch.equal(found.weights[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("seed", range(3))
def test_a_recorded_run_is_carried_over(tmp_path, seed):
    spec, model, line, target, source = setting(seed)
    model.load_state_dict(line.state(0))
    with TrajectoryRecorder(tmp_path / "t", model, every=2) as recorder:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for x, y, _ in itertools.chain(source.batches(0), source.batches(1)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            recorder.step()
    run = Trajectory.open(tmp_path / "t")
    steps = list(transfer(run, target, spec, Gradients(model, source), by="fgmt"))
    assert [s.step for s in steps] == [2, 4, 6]
    for i, found in enumerate(steps, start=1):
        moved = spec.apply(
            {k: v - run.initial[k] for k, v in run.state(i).items()},
            found[2] if isinstance(found, tuple) else found.permutation,
        )
        for k in target:
            torch.testing.assert_close(found.weights[k], target[k] + moved[k])


def test_the_controls_match_what_they_say():
    spec, _, line, target, _ = setting(2)
    trained = {k: v + 0.2 * torch.sin(7 * v) for k, v in target.items()}
    delta = {k: v - line.initial[k] for k, v in line.state(-1).items()}
    own = {k: v - target[k] for k, v in trained.items()}
    wanted = {
        "naive": spec.identity(),
        "oracle": match(spec, own, delta).permutation,
        "initial_weights": match(spec, target, dict(line.initial)).permutation,
    }
    for by, permutation in wanted.items():
        steps = list(transfer(line, target, spec, by=by, trained=trained))
        assert len(steps) == len(line)
        for found in steps:
            assert all(torch.equal(found.permutation[k], p) for k, p in permutation.items())
        moved = spec.apply(delta, permutation)
        for k in target:
            torch.testing.assert_close(steps[-1].weights[k], target[k] + moved[k])
    straight = Trajectory.linear(target, trained, steps=3)
    *_, found = transfer(line, target, spec, by="oracle", trained=straight)
    assert all(torch.equal(found.permutation[k], p) for k, p in wanted["oracle"].items())
    half = list(transfer(line, target, spec, by="naive", scale=0.5))
    for k in target:
        torch.testing.assert_close(half[-1].weights[k], target[k] + 0.5 * delta[k])


def test_what_is_reused_changes_nothing():
    spec, model, line, target, source = setting(3)
    same = Source((6,), same=True)
    again, once = (
        list(transfer(line, target, spec, Gradients(model, same), by="gmt", redraw=redraw))
        for redraw in (True, False)
    )
    for a, b in zip(again, once, strict=True):
        assert all(torch.equal(a.permutation[k], b.permutation[k]) for k in spec.groups)
        assert a.objective == pytest.approx(b.objective)
    n = len(line)
    assert again[-1].costs.count == n * (n + 1)
    # Each of the source's once, and the target's first, which no permutation moves, once.
    assert once[-1].costs.count <= n + 1 + n * (n - 1) // 2
    fast = list(transfer(line, target, spec, Gradients(model, source), by="fgmt"))
    assert fast[-1].costs.count == 2 * n


def test_statistics_are_taken_anew_for_what_is_yielded():
    model, spec, _ = residual()
    a, b, other = ends(model, dtype=torch.float32)
    line = Trajectory.linear(a, b, steps=2)
    source = Source((3, 2, 2), dtype=torch.float32)
    data = Gradients(model, source)
    plain = list(transfer(line, other, spec, data, by="fgmt"))
    fresh = list(transfer(line, other, spec, data, by="fgmt", statistics=source))
    for one, two in zip(plain, fresh, strict=True):
        network = copy.deepcopy(model)
        network.load_state_dict(one.weights)
        reset_batch_norm_(network, source)
        for k, v in network.state_dict().items():
            torch.testing.assert_close(two.weights[k], v)
        # Without it they are the permuted source's: a displaced variance could be negative.
        moved = spec.apply(dict(line.initial), one.permutation)
        torch.testing.assert_close(one.weights["norm.running_var"], moved["norm.running_var"])


def test_a_constant_of_the_target_stays_its_own():
    class Scaled(nn.Sequential):
        def __init__(self, code):
            super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
            self.register_buffer("code", code)

    model, other = (Scaled(torch.full((3,), v)) for v in (1.0, 2.0))
    spec = mlp([6, 8, 3])[1]
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    spec = type(spec)(spec.groups, shapes)
    final = {k: v + 1 for k, v in model.state_dict().items()}
    line = Trajectory.linear(model.state_dict(), final, steps=2, buffers=["code"])
    for found in transfer(line, other.state_dict(), spec, by="naive"):
        assert torch.equal(found.weights["code"], other.code)


def test_bfloat16_weights_are_displaced_in_float32():
    spec, model, _, _, _ = setting(5)
    model = model.bfloat16()
    a, b, other = ends(model, seed=5, dtype=torch.bfloat16)
    line = Trajectory.linear(a, b, steps=8)
    data = Gradients(model, Source((6,), dtype=torch.bfloat16))
    for found in transfer(line, other, spec, data, by="fgmt", store=torch.bfloat16):
        for k, v in found.weights.items():
            delta = (b[k].float() - a[k].float()) * (found.step / 8)
            wanted = other[k].float() + spec.apply_to(k, delta, found.permutation)
            assert v.dtype == torch.bfloat16
            assert torch.equal(v, wanted.bfloat16())
    *_, last = transfer(line, other, spec, data, by="gmt")
    assert math.isfinite(last.cosine)


def test_matching_brings_gradients_together():
    spec, model, line, target, source = setting(6, widths=(6, 40, 30, 3))
    data = Gradients(model, source, count=3)
    for by in ("gmt", "fgmt"):
        for found in transfer(line, target, spec, data, by=by):
            assert found.cosine > found.cosine_before + 0.1
            assert found.sweeps >= 1
        *_, before, last = transfer(line, target, spec, data, by=by, warm_sweeps=1)
        assert before.sweeps == 1
        assert last.sweeps > 1  # nothing goes on from the last one: it runs to its end


def test_a_network_that_nothing_permutes_is_transferred_naively():
    model = nn.Linear(6, 3).double()
    spec = mlp([6, 3])[1]
    spec = type(spec)({}, {k: tuple(v.shape) for k, v in model.state_dict().items()})
    a, b, other = ends(model)
    line = Trajectory.linear(a, b, steps=2)
    data = Gradients(model, Source((6,)))
    naive, fast = (list(transfer(line, other, spec, data, by=by)) for by in ("naive", "fgmt"))
    for one, two in zip(naive, fast, strict=True):
        assert all(torch.equal(one.weights[k], two.weights[k]) for k in other)


def test_a_dead_network_is_named_and_a_dead_layer_told():
    spec, model, line, target, source = setting(7)
    dead = {**target, "0.bias": target["0.bias"] - 1e3, "2.bias": target["2.bias"] - 1e3}
    with pytest.raises(
        InputError, match=r"gradients of 0\.weight and of all other groups are zero"
    ):
        next(transfer(line, dead, spec, Gradients(model, source)))
    part = {**target, "2.weight": target["2.weight"] * 0, "2.bias": target["2.bias"].abs()}
    found = next(transfer(line, part, spec, Gradients(model, source)))
    assert found.dead == ()
    # The second layer has gradients and lets none through to the first: units of that stay.
    sites = {s.tensor for s in spec.groups["0.weight"].sites}
    assert sites == {"0.weight", "0.bias", "2.weight"}


def test_wrong_input_is_refused_at_once():
    spec, model, line, target, source = setting()
    data = Gradients(model, source)
    narrow = {**target, "2.weight": target["2.weight"][:, :-1]}
    bad = {**target, "4.bias": target["4.bias"] * math.nan}
    without = {k: v for k, v in target.items() if k != "4.bias"}
    for match_, args, options in (
        (r"by='best': expected one of gmt", (line, target, spec, data), {"by": "best"}),
        (r"by='gmt' matches gradients: give data", (line, target, spec), {"by": "gmt"}),
        (r"by='oracle'.*give its trained weights", (line, target, spec), {"by": "oracle"}),
        (r"the target: 2\.weight has shape", (line, narrow, spec, data), {}),
        (r"the target has no tensor '4\.bias'", (line, without, spec, data), {}),
        (r"the target: 4\.bias has 3 of 3 entries that are NaN", (line, bad, spec, data), {}),
        (r"statistics are taken by a model", (line, target, spec), {"by": "naive", "statistics": []}),
        (r"warm_sweeps=0", (line, target, spec, data), {"warm_sweeps": 0}),
        (r"max_sweeps=-1", (line, target, spec, data), {"max_sweeps": -1}),
        (r"count=0", (line, target, spec, Gradients(model, source, count=0)), {}),
        (r"label 3 and the network 3 outputs", (line, target, spec,
         Gradients(model, Source((6,), classes=4))), {}),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match_):
            transfer(*args, **options)
    other, _ = mlp([6, 11, 9, 3])
    with pytest.raises(InputError, match=r"the model: 0\.weight has shape"):
        transfer(line, target, spec, Gradients(other.double(), source))
    assert set(METHODS) == {"gmt", "fgmt", "naive", "oracle", "initial_weights"}


def test_what_is_random_or_no_classifier_or_overflows_is_refused():
    spec, _, line, target, source = setting()

    class Noisy(nn.Sequential):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5, training=True)

    class Sum(nn.Sequential):
        def forward(self, x):
            return super().forward(x).sum(1)

    layers = mlp([6, 10, 9, 3])[0].double()
    for kind, message in ((Noisy, "Noisy gives other outputs each time"), (Sum, "no logits")):
        with pytest.raises(InputError, match=message):
            transfer(line, target, spec, Gradients(kind(*layers), source))
    far = {k: v * 1e110 for k, v in line.initial.items()}
    steep = Trajectory.linear(far, line.state(-1), steps=2)
    with pytest.raises(DivergenceError, match=r"the loss of the source at step 0 is (nan|inf)"):
        next(transfer(steep, target, spec, Gradients(layers, source)))
    lonely = Source((6,), batch=1)
    norm = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    with pytest.raises(InputError, match="too small for batch statistics"):
        Gradients(norm, lonely).check(norm.state_dict(), "it")
