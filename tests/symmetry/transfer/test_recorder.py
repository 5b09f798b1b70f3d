import json
import math

import pytest
import torch
from recordings import copies, network, recorded, same, train
from torch import nn

from regraft.errors import DivergenceError, InputError
from regraft.files import load_json, parse_json, write_json
from regraft.symmetry.transfer.recorder import TrajectoryRecorder
from regraft.symmetry.transfer.trajectory import Trajectory


@pytest.mark.parametrize(("storage", "bound"), [("bfloat16", 2**-8), ("float16", 2**-10)])
def test_half_storage_says_what_it_cost(tmp_path, storage, bound):
    kept = recorded(tmp_path / "t", storage=storage)
    found = Trajectory.open(tmp_path / "t")
    worst = 0.0
    for step, state in list(found)[1:]:
        off = sum((state[k] - kept[step][k]).double().square().sum() for k in found.trained)
        moved = sum((kept[step][k] - kept[0][k]).double().square().sum() for k in found.trained)
        worst = max(worst, math.sqrt(off / moved))
    assert found.error == pytest.approx(worst, rel=1e-3)
    assert 1e-5 < found.error < bound
    full = recorded(tmp_path / "full")
    assert len(full) == len(kept)
    sizes = [(tmp_path / d / "step-00000002.safetensors").stat().st_size for d in ("t", "full")]
    assert sizes[0] < sizes[1]


def test_going_on_equals_never_having_stopped(tmp_path):
    recorded(tmp_path / "whole")
    model = network()
    recorder = TrajectoryRecorder(tmp_path / "t", model, every=2)
    train(model, 3, after=lambda step: recorder.step())
    checkpoint = copies(model), recorder.state_dict()
    for _ in range(2):  # it went on to steps 4 and 5 after its checkpoint, and was killed there
        train(model, 5, start=3, after=lambda step, recorder=recorder: recorder.step())
        model = network(seed=9)
        recorder = TrajectoryRecorder(tmp_path / "t", model, every=2)
        assert recorder.count == 4
        model.load_state_dict(checkpoint[0])
        recorder.load_state_dict(checkpoint[1])
    with recorder:
        train(model, 7, start=3, after=lambda step: recorder.step())
    a, b = (Trajectory.open(tmp_path / d, cut="refuse") for d in ("whole", "t"))
    assert a.steps == b.steps
    for i in range(len(a.steps)):
        same(a.state(i), b.state(i), rtol=0, atol=0)
    assert (tmp_path / "t/index.json").read_text() == (tmp_path / "whole/index.json").read_text()


def test_a_recorder_goes_on_with_its_own_run_only(tmp_path):
    recorded(tmp_path / "t")
    with pytest.raises(InputError, match="every=2 instead of 3"):
        TrajectoryRecorder(tmp_path / "t", network(), every=3)
    with pytest.raises(InputError, match="storage='full' instead of 'float16'"):
        TrajectoryRecorder(tmp_path / "t", network(), every=2, storage="float16")
    other = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))
    with pytest.raises(InputError, match=r"0\.weight has shape"):
        TrajectoryRecorder(tmp_path / "t", other, every=2)


def test_a_run_that_diverged_or_left_the_storage_is_refused(tmp_path):
    model = network()
    recorder = TrajectoryRecorder(tmp_path / "t", model, storage="float16")
    with torch.no_grad():
        model[3].weight[0, 0] = 1e6
    with pytest.raises(DivergenceError, match=r"3\.weight has moved too far"):
        recorder.step()
    with torch.no_grad():
        model[3].weight[0, 0] = math.nan
    with pytest.raises(DivergenceError, match=r"3\.weight is not finite at step 2"):
        recorder.step()
    assert json.loads((tmp_path / "t/index.json").read_text())["steps"] == []


def test_wrappers_are_looked_through(tmp_path):
    model = network()
    wrapped = nn.DataParallel(model)
    header = {"regraft.model": "{}"}
    with TrajectoryRecorder(tmp_path / "t", wrapped, metadata=header) as recorder:
        train(model, 1, after=lambda step: recorder.step(wrapped))
    initial = Trajectory.open(tmp_path / "t").initial
    assert set(initial) == set(model.state_dict())
    assert initial.metadata.items() >= header.items()


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_the_initial_network_is_recorded_anew_over_a_run_cut_short(tmp_path):
    model = network()
    recorder = TrajectoryRecorder(tmp_path / "t", model, every=3)
    train(model, 4, after=lambda step: recorder.step())
    recorder.finish()  # at step 4, which the second run does not record
    index = load_json(tmp_path / "t/index.json")
    index.pop("finished")
    write_json(tmp_path / "t/index.json", index)
    before = files(tmp_path / "t")

    model = network()
    recorder = TrajectoryRecorder(tmp_path / "t", model, every=3)
    assert recorder.count == 0
    assert files(tmp_path / "t") == before  # opening is not recording
    kept = {}

    def after(step):
        recorder.step()
        kept[step] = copies(model)

    train(model, 13, start=5, after=lambda step: after(step - 5))  # other batches
    with pytest.warns(UserWarning, match="not finished"):
        found = Trajectory.open(tmp_path / "t")
    assert found.steps == (0, 3, 6)
    for i, step in enumerate(found.steps[1:], start=1):
        same(found.state(i), kept[step], rtol=0, atol=2e-7)
    recorder.finish()
    found = Trajectory.open(tmp_path / "t", cut="refuse")
    assert found.steps == (0, 3, 6, 8)


def test_another_network_is_refused_and_nothing_is_lost(tmp_path):
    kept = recorded(tmp_path / "t")
    before = files(tmp_path / "t")
    for folder_is_finished in (True, False):
        if not folder_is_finished:
            index = parse_json(before["index.json"])
            index.pop("finished")
            write_json(tmp_path / "t/index.json", index)
            before = files(tmp_path / "t")
        other = network(3)
        recorder = TrajectoryRecorder(tmp_path / "t", other, every=2)
        with pytest.raises(InputError, match=r"holds a recording until step 7.*load_state_dict"):
            train(other, 1, after=lambda step, recorder=recorder: recorder.step())
        assert recorder.count == 7
        with (
            pytest.raises(InputError, match="load_state_dict"),
            TrajectoryRecorder(tmp_path / "t", other, every=2) as again,
        ):
            again.step(other)
        with pytest.raises(InputError, match=r"recorded from another initial network.*step 0"):
            recorder.load_state_dict({"count": 0})
        recorder.finish()
        assert files(tmp_path / "t") == before
    found = Trajectory.open(tmp_path / "t", cut="use")
    for i, step in enumerate(found.steps):
        same(found.state(i), kept[step], rtol=0, atol=2e-7)


def test_a_finished_recording_goes_on_only_by_its_state(tmp_path):
    kept = recorded(tmp_path / "t", steps=6)
    before = files(tmp_path / "t")
    model = network()
    with TrajectoryRecorder(tmp_path / "t", model, every=2):
        pass
    model.load_state_dict(kept[6])
    recorder = TrajectoryRecorder(tmp_path / "t", model, every=2)
    recorder.load_state_dict({"count": 6})
    assert files(tmp_path / "t") == before
    train(model, 8, start=6, after=lambda step: recorder.step())
    with pytest.warns(UserWarning, match="not finished; whole up to step 8"):
        assert Trajectory.open(tmp_path / "t").steps == (0, 2, 4, 6, 8)
    recorder.finish()
    assert Trajectory.open(tmp_path / "t", cut="refuse").steps == (0, 2, 4, 6, 8)


def test_a_finished_recording_of_the_same_start_is_replaced_with_a_warning(tmp_path):
    recorded(tmp_path / "t")
    model = network()
    recorder = TrajectoryRecorder(tmp_path / "t", model, every=2)
    before = files(tmp_path / "t")
    with pytest.warns(UserWarning, match="finished recording of 4 states.*recorded anew"):
        recorder.step()
    assert files(tmp_path / "t") == before
    with recorder:
        train(model, 2, after=lambda step: recorder.step())
    assert Trajectory.open(tmp_path / "t", cut="refuse").steps == (0, 2, 3)


def test_the_last_state_is_that_of_the_network_given_last(tmp_path):
    model, other = network(), network()
    with TrajectoryRecorder(tmp_path / "t", model, every=2) as recorder:
        train(other, 3, after=lambda step: recorder.step(other))
    found = Trajectory.open(tmp_path / "t", cut="refuse")
    assert found.steps == (0, 2, 3)
    same(found.state(-1), copies(other), rtol=0, atol=2e-7)


def test_step_0_is_gone_on_from_once_the_network_is_the_initial_one(tmp_path):
    kept = recorded(tmp_path / "t")
    model = network(5)
    recorder = TrajectoryRecorder(tmp_path / "t", model, every=2)
    model.load_state_dict(kept[0])
    recorder.load_state_dict({"count": 0})
    with recorder:
        train(model, 2, after=lambda step: recorder.step())
    assert Trajectory.open(tmp_path / "t", cut="refuse").steps == (0, 2)


def cut(file):
    file.write_bytes(file.read_bytes()[:-4])


def resumed(folder, kept, count, *, every=1):
    model = network(9)
    recorder = TrajectoryRecorder(folder, model, every=every)
    model.load_state_dict(kept[count])
    recorder.load_state_dict({"count": count})
    return model, recorder


@pytest.mark.parametrize("every", [1, 2])
def test_a_run_does_not_go_on_past_a_damaged_state_and_nothing_is_lost(tmp_path, every):
    kept = recorded(tmp_path / "t", steps=8, every=every)
    whole = files(tmp_path / "t")
    cut(tmp_path / "t/step-00000002.safetensors")
    before = files(tmp_path / "t")
    for count in (3, 4, 8):
        with pytest.raises(InputError, match=rf"step-00000002.*step {count}.*before step 2"):
            resumed(tmp_path / "t", kept, count, every=every)
    assert files(tmp_path / "t") == before
    (tmp_path / "t/step-00000002.safetensors").write_bytes(whole["step-00000002.safetensors"])
    model, recorder = resumed(tmp_path / "t", kept, 4, every=every)
    with recorder:
        train(model, 8, start=4, after=lambda step: recorder.step())
    assert files(tmp_path / "t") == whole


def test_a_run_that_goes_on_before_a_damaged_state_records_it_again(tmp_path):
    kept = recorded(tmp_path / "t", steps=6, every=1)
    whole = files(tmp_path / "t")
    cut(tmp_path / "t/step-00000003.safetensors")
    model, recorder = resumed(tmp_path / "t", kept, 2)
    assert [one["step"] for one in load_json(tmp_path / "t/index.json")["steps"]] == [1, 2]
    with recorder:
        train(model, 6, start=2, after=lambda step: recorder.step())
    assert files(tmp_path / "t") == whole


def test_the_damaged_state_at_which_a_run_goes_on_is_recorded_again_if_it_is_the_networks(tmp_path):
    kept = recorded(tmp_path / "t", steps=7, every=2)
    whole = files(tmp_path / "t")
    for count in (4, 7):
        cut(tmp_path / f"t/step-{count:08d}.safetensors")
        model, recorder = resumed(tmp_path / "t", kept, count, every=2)
        with recorder:
            train(model, 7, start=count, after=lambda step, recorder=recorder: recorder.step())
        assert files(tmp_path / "t") == whole
    cut(tmp_path / "t/step-00000004.safetensors")
    with pytest.raises(InputError, match=r"step-00000004.*before step 4"):
        resumed(tmp_path / "t", {4: kept[2]}, 4, every=2)


def test_a_run_does_not_go_on_with_states_that_were_never_recorded(tmp_path):
    kept = recorded(tmp_path / "t", steps=4)
    with pytest.raises(InputError, match=r"has no state of step 6.*before step 6"):
        resumed(tmp_path / "t", {6: kept[4]}, 6, every=2)
    with pytest.raises(InputError, match=r"has no state of step 1"):
        resumed(tmp_path / "other", kept, 4)
