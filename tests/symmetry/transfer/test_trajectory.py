import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recordings import copies, network, recorded, same, train
from symmetry_specs import mlp, plain, random_state
from torch import nn

from regraft.errors import InputError
from regraft.files import load_json, write_json
from regraft.symmetry.spec.group import Site
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.transfer.recorder import TrajectoryRecorder
from regraft.symmetry.transfer.trajectory import Trajectory, fractions
from regraft.symmetry.transfer.transfer import transfer


def test_a_recorded_run_comes_back_with_its_last_state(tmp_path):
    kept = recorded(tmp_path / "t")
    found = Trajectory.open(tmp_path / "t", cut="refuse")
    assert found.steps == (0, 2, 4, 6, 7)
    assert len(found) == 4
    for step, state in found:
        same(state, kept[step], rtol=0, atol=2e-7)
    same(dict(found.initial), kept[0], rtol=0, atol=0)
    # What is not trained is as it was to the last bit.
    last = found.state(-1)
    for name in ("1.running_var", "1.num_batches_tracked"):
        assert torch.equal(last[name], kept[7][name])
    assert found.trained == {k for k in kept[0] if "running" not in k and "num" not in k}
    assert 0 < found.error < 1e-5


def test_a_run_cut_short_is_told_and_its_prefix_used(tmp_path):
    model = network()
    recorder = TrajectoryRecorder(tmp_path / "t", model)
    train(model, 3, after=lambda step: recorder.step())
    with pytest.warns(UserWarning, match=r"not finished; whole up to step 3 \(3 states\)"):
        assert Trajectory.open(tmp_path / "t").steps == (0, 1, 2, 3)
    assert Trajectory.open(tmp_path / "t", cut="use").steps == (0, 1, 2, 3)
    with pytest.raises(InputError, match="cut short: it was not finished"):
        Trajectory.open(tmp_path / "t", cut="refuse")


def damage(file, how):
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(data[:-4] if how == "shorter" else data[:-4] + b"\x01\x02\x03\x04")


@pytest.mark.parametrize("how", ["missing", "shorter", "changed"])
def test_damage_ends_the_prefix(tmp_path, how):
    recorded(tmp_path / "t")
    damage(tmp_path / "t/step-00000006.safetensors", how)
    with pytest.warns(UserWarning, match=r"step-00000006.*whole up to step 4"):
        assert Trajectory.open(tmp_path / "t").steps == (0, 2, 4)
    with pytest.raises(InputError, match=r"step-00000006.*cut='use'"):
        Trajectory.open(tmp_path / "t", cut="refuse")
    # A recorder records the damaged state again.
    assert TrajectoryRecorder(tmp_path / "t", network(1), every=2).count == 4


@pytest.mark.parametrize("how", ["missing", "shorter", "changed"])
def test_without_its_initial_state_nothing_is_used(tmp_path, how):
    recorded(tmp_path / "t")
    damage(tmp_path / "t/initial.safetensors", how)
    with pytest.raises(InputError, match="without the initial state"):
        Trajectory.open(tmp_path / "t")


def test_what_is_no_trajectory_is_refused(tmp_path):
    with pytest.raises(InputError, match="no recorded trajectory"):
        Trajectory.open(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds notes.txt and is no trajectory"):
        TrajectoryRecorder(tmp_path, network())
    recorded(tmp_path / "t", steps=2)
    index = load_json(tmp_path / "t/index.json")
    for change, message in (
        ({"schema": 99}, "schema 99.*update regraft"),
        ({"kind": "other"}, "damaged"),
        ({"steps": [{**index["steps"][0], "file": "../x"}]}, "outside the folder"),
        ({"steps": [index["steps"][0]] * 2}, "not in order"),
        ({"trained": ["nothing"]}, "has no nothing"),
        ({"steps": []}, "cut short|only its initial state"),
    ):
        write_json(tmp_path / "t/index.json", {**index, **change})
        with pytest.raises(InputError, match=message):
            Trajectory.open(tmp_path / "t")


@given(st.integers(1, 40), st.sampled_from(["uniform", "cosine"]))
def test_fractions_rise_from_zero_to_one(steps, spacing):
    found = fractions(steps, spacing)
    assert (found[0], found[-1], len(found)) == (0.0, 1.0, steps + 1)
    assert all(a < b for a, b in itertools.pairwise(found))
    # The cosine advances as the integral of its learning rate does: fast first.
    if spacing == "cosine":
        weights = [1 + math.cos(math.pi * t / steps) for t in range(steps)]
        for s, value in enumerate(found):
            assert value == pytest.approx(sum(weights[:s]) / sum(weights))
    else:
        assert found == pytest.approx([s / steps for s in range(steps + 1)])


@given(st.integers(0, 50), st.integers(1, 6))
def test_a_straight_trajectory_is_the_line(seed, steps):
    model, _ = mlp([3, 4, 2])
    a, b = random_state(model, seed), random_state(model, seed + 1)
    line = Trajectory.linear(a, b, steps=steps)
    for s, (step, state) in enumerate(line):
        assert step == s
        same(state, {k: (1 - s / steps) * a[k] + s / steps * b[k] for k in a})
    same(line.state(-1), b)
    assert line.straight(2).steps == (0, 1, 2)


def test_statistics_on_a_line_stay_statistics(tmp_path):
    a, b = network(0), network(1)
    train(b, 3)
    line = Trajectory.linear(a.state_dict(), b.state_dict(), steps=4)
    states = [state for _, state in line]
    assert [int(s["1.num_batches_tracked"]) for s in states] == [0, 3, 3, 3, 3]
    assert "1.running_var" not in line.trained
    variances = [s["1.running_var"] for s in states]
    torch.testing.assert_close(variances[2], (variances[0] + variances[4]) / 2)
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in a.state_dict().items()}
    assert all(v.dtype == half[k].dtype for k, v in Trajectory.linear(half, half).state(3).items())


def test_thinning_keeps_the_last(tmp_path):
    recorded(tmp_path / "t", steps=10, every=1)
    whole = Trajectory.open(tmp_path / "t")
    for count in range(1, 11):
        thin = whole.thinned(count)
        assert len(thin) == count
        assert thin.steps[-1] == 10
        assert len(set(thin.steps)) == count + 1
    same(whole.thinned(2).state(1), whole.state(5), rtol=0, atol=0)
    with pytest.raises(InputError, match=r"steps=11: the trajectory has 10"):
        whole.thinned(11)


def test_two_checkpoints_that_make_no_line_are_refused():
    a, b = network(), nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(InputError, match=r"0\.weight has shape \(5, 4\), expected \(6, 4\)"):
        Trajectory.linear(a.state_dict(), b.state_dict())
    bad = copies(a)
    bad["3.bias"][1] = math.inf
    with pytest.raises(InputError, match=r"the final state: 3\.bias"):
        Trajectory.linear(a.state_dict(), bad)
    with pytest.raises(InputError, match="steps=0"):
        Trajectory.linear(a.state_dict(), a.state_dict(), steps=0)
    with pytest.raises(InputError, match="spacing='linear'"):
        Trajectory.linear(a.state_dict(), a.state_dict(), spacing="linear")


def test_a_buffer_that_training_moved_is_none_of_the_trained_tensors_on_either_path(tmp_path):
    class Scaled(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
            self.register_buffer("mean", torch.zeros(6))

    torch.manual_seed(0)
    model = Scaled()
    other = {**copies(Scaled()), "mean": torch.full((6,), 7.0)}
    with TrajectoryRecorder(tmp_path / "t", model) as recorder:

        def after(step):
            model.mean += torch.arange(6)
            recorder.step()

        train(model, 3, after=after)
    whole = Trajectory.open(tmp_path / "t")
    spec = mlp([4, 6, 3])[1]
    sites = (*spec.groups["0.weight"].sites, Site("mean", 0, plain(6)))
    group = dataclasses.replace(spec.groups["0.weight"], sites=sites)
    spec = PermutationSpec({"0.weight": group}, {**spec.shapes, "mean": (6,)})
    straight = whole.straight(3)
    assert straight.trained == whole.trained
    assert straight.straight(2).trained == whole.thinned(2).straight(2).trained == whole.trained
    assert "mean" not in dict(straight.displacement(2))
    for line in (whole, straight):
        assert torch.equal(line.state(-1)["mean"], 3 * torch.arange(6.0))
        for found in transfer(line, other, spec, by="initial_weights"):
            assert torch.equal(found.weights["mean"], other["mean"])
