"""Single fine-tunings with what was chosen for them, as the recipe `adarand` makes them."""

import dataclasses
import math

import numpy as np
import pytest
from adarand_runs import TASK, history, link, quick
from PIL import Image
from safetensors.torch import load_file

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.errors import DivergenceError, InputError
from regraft.jobs.base import with_sources
from regraft.jobs.finetune.tuned_job import TunedJob
from regraft.jobs.finetune.tuned_task import TunedTask, Tuning
from regraft.recipes.adarand.arms import ARMS
from regraft.train import read_json

ARMS_RUN = ("scratch", "plain", "adarand", "supcon", "co_tuning", "delta")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Every kind of arm, selection included, run at two seeds: (arm, seed) -> (job, result)."""
    root = tmp_path_factory.mktemp("adarand")
    found = {}
    for job in with_sources([job.with_seed(seed) for job in quick(ARMS_RUN) for seed in (1, 2)]):
        result = job.run(root)
        if isinstance(job, TunedJob):
            found[job.arm, job.runtime.seed] = (job, result)
    return found, root


# What is measured.


def test_every_arm_has_its_numbers(finished):
    found, root = finished
    for (arm, _), (job, result) in found.items():
        metrics = result["metrics"]
        # So short a run may end anywhere, also below guessing; how good methods are is tested elsewhere.
        assert 0 <= metrics["test_accuracy"] <= 100, arm
        assert all(math.isfinite(value) for value in metrics.values()), arm
        assert metrics["lr"] in {trial.lr for trial in job.choice.grid}
        assert ("weight" in metrics) is bool(ARMS[arm].weights)
        assert not (job.folder(root) / "checkpoint.safetensors").exists()
        splits = {row["split"] for row in history(job.folder(root))}
        assert "validation" not in splits


def test_the_best_trial_is_chosen_and_no_trial_sees_the_test_images(finished):
    found, root = finished
    for arm in ("plain", "adarand"):
        job, result = found[arm, 1]
        choice = read_json(job.choice.folder(root) / "choice.json")
        tried = [{k: t[k] for k in ("lr", "weight", "options")} for t in choice["trials"]]
        assert [Tuning(method=job.tuning.method, **t) for t in tried] == list(job.choice.grid)
        best = max(t["validation_accuracy"] for t in choice["trials"])
        (won,) = [t for t in choice["trials"] if choice["chosen"].items() <= t.items()]
        assert won["validation_accuracy"] == best
        assert result["metrics"]["lr"] == choice["chosen"]["lr"]
        assert result["metrics"].get("prior_lr") == choice["chosen"]["options"].get("prior_lr")
        assert read_json(job.folder(root) / "chosen.json") == choice["chosen"]
        folders = list((job.choice.folder(root) / "trials").glob("*/*"))
        assert len(folders) == len(job.choice.grid)
        for folder in folders:
            assert "test" not in {row["split"] for row in history(folder)}
            assert "test_accuracy" not in read_json(folder / "result.json")["metrics"]
    # A learning rate that does nothing is not what wins.
    assert found["plain", 1][1]["metrics"]["lr"] > 1e-9


def test_arms_of_a_seed_share_images_and_start_and_seeds_do_not(finished):
    found, root = finished
    one, two = (TASK.with_seed(seed).splits(seed) for seed in (1, 2))
    assert one.train.labels.bincount(minlength=10).tolist() == [5] * 5 + [0] * 5
    assert not one.train.images.equal(two.train.images)
    assert one.validation.images.equal(two.validation.images)
    assert len(one.validation) == 60
    a, b = (found[arm, 1][0] for arm in ("plain", "adarand"))
    assert a.task.splits(1).train.images.equal(b.task.splits(1).train.images)
    assert a.task.source.folder(root) == b.task.source.folder(root)
    assert a.task.source.folder(root) != found["plain", 2][0].task.source.folder(root)


def test_the_start_is_the_source_with_a_new_classifier(finished):
    found, root = finished
    job = found["co_tuning", 1][0]
    start = job.task.start(job.task.splits(1), root, seed=1, want_source=True)
    source = load_file(job.task.source.folder(root) / "model.safetensors")
    own = start.model.state_dict()
    for name, tensor in source.items():
        assert own[name].equal(tensor) is not name.startswith("head."), name
    assert start.source.weight.equal(source["head.weight"])
    scratch = found["scratch", 1][0].task
    other = scratch.start(scratch.splits(1), root, seed=1, want_source=False).model.state_dict()
    assert not other["features.0.weight"].equal(own["features.0.weight"])


def test_features_are_described_along_training(finished):
    found, root = finished
    job, result = found["adarand", 1]
    described = [row for row in history(job.folder(root)) if row["split"] == "features"]
    assert [row["step"] for row in described] == [0, 2, 4]
    for key in ("feature_norm", "entropy", "mutual_information"):
        assert described[-1][key] == pytest.approx(result["metrics"][key])
    # Before the first step arms are the same.
    start = history(found["plain", 1][0].folder(root))
    assert described[0] == next(row for row in start if row["split"] == "features")
    assert "entropy" not in found["delta", 1][1]["metrics"]


# Interrupted.


class KilledError(Exception):
    pass


@pytest.mark.parametrize("arm", ["adarand", "supcon", "co_tuning"])
def test_a_killed_run_goes_on_to_the_same_numbers(finished, tmp_path, arm):
    found, root = finished
    job, result = found[arm, 1]
    hasty = dataclasses.replace(
        job, runtime=dataclasses.replace(job.runtime, checkpoint_seconds=0.0)
    )
    link(job.sources, root, tmp_path)

    def stop(step, steps, row):
        if step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        hasty.run(tmp_path, progress=stop)
    assert not (job.folder(tmp_path) / "result.json").exists()
    assert hasty.run(tmp_path)["metrics"] == result["metrics"]
    one, two = ((job.folder(r) / "metrics.jsonl").read_bytes() for r in (root, tmp_path))
    assert one == two


def test_a_killed_selection_goes_on_with_the_trials_it_has(finished, tmp_path):
    found, root = finished
    choice = found["plain", 1][0].choice
    link(choice.sources, root, tmp_path)
    calls = []

    def stop(step, steps, row):
        calls.append(step)
        if len(calls) == 6:  # in the second trial of two
            raise KilledError

    with pytest.raises(KilledError):
        choice.run(tmp_path, progress=stop)
    done = list(choice.folder(tmp_path).glob("trials/*/*/result.json"))
    assert len(done) == 1
    stamp = done[0].stat().st_mtime_ns
    choice.run(tmp_path)
    assert done[0].stat().st_mtime_ns == stamp
    again, first = (choice.chosen(r) for r in (tmp_path, root))
    assert again == first


def test_later_stages_vary_the_best_so_far(finished, tmp_path):
    found, root = finished
    ours = found["adarand", 1][0].choice
    link(ours.sources, root, tmp_path)
    grid = (dataclasses.replace(ours.grid[0], lr=1e-9, weight=1.0, options={}),)
    scales = ({"options": {"prior_scale": 0.0}}, {"options": {"prior_scale": 3.0}})
    choice = dataclasses.replace(
        ours, grid=grid, then=(({"lr": 1e8}, {"weight": 3.0}), scales), arm="staged"
    )
    result = choice.run(tmp_path)
    kept = read_json(choice.folder(tmp_path) / "choice.json")
    tried = [(t["lr"], t["weight"]) for t in kept["trials"]]
    assert tried == [(1e-9, 1.0), (0.1, 1.0), (1e-9, 3.0), (0.1, 1.0), (0.1, 1.0)]
    assert [t["options"] for t in kept["trials"][3:]] == [s["options"] for s in scales]
    best = max(kept["trials"], key=lambda t: (t["validation_accuracy"], -t["validation_loss"]))
    assert kept["chosen"] == {k: best[k] for k in ("lr", "weight", "options")}
    assert result["metrics"]["least_weight"] == 1.0
    assert result["metrics"]["most_weight"] == 3.0
    assert choice.config() != dataclasses.replace(choice, then=()).config()


def test_it_is_told_how_far_class_means_moved(finished):
    moved = found_of(finished, "adarand")["means_moved"]
    assert 0 < moved < 1
    assert "means_moved" not in found_of(finished, "plain")


def found_of(finished, arm):
    return finished[0][arm, 1][1]["metrics"]


def test_a_folder_without_a_test_part_is_tested_on_what_judges_no_trial(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(20):
            shade = 10 * i + (5 if name == "a" else 0)
            image.new("L", (8, 8), shade).save(tmp_path / name / f"{i}.png")
    data = dataclasses.replace(TASK.data, name=str(tmp_path), validation=0.5, only_classes=())
    task = dataclasses.replace(TASK, data=data, shots=3, validation_images=8, test_images=10)
    splits = task.splits(1)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6, 8, 10)
    parts = [
        {float(x.float().mean()) for x in part.images}
        for part in (splits.train, splits.validation, splits.test)
    ]
    assert len(set.union(*parts)) == 24


def test_a_share_of_the_images_is_stratified():
    task = dataclasses.replace(TASK, shots=None, share=0.1)
    whole = TunedTask.splits(dataclasses.replace(TASK, shots=None), 1)
    few = task.splits(1)
    assert len(few.train) == round(0.1 * len(whole.train))
    assert (few.train.labels.bincount() > 0).sum() == 5


# What goes wrong.


def _plain(lr):
    return Tuning(method="plain", lr=lr)


def test_a_trial_that_diverges_is_out(finished, tmp_path):
    found, root = finished
    plain = found["plain", 1][0]
    link(plain.choice.sources, root, tmp_path)
    choice = dataclasses.replace(plain.choice, grid=(_plain(1e30), _plain(0.1)))
    choice.run(tmp_path)
    kept = read_json(choice.folder(tmp_path) / "choice.json")
    assert kept["chosen"] == {"lr": 0.1, "weight": None, "options": {}}
    assert "lower the learning rate" in kept["trials"][0]["diverged"]
    worse = dataclasses.replace(choice, arm="other", grid=(_plain(1e30),))
    with pytest.raises(DivergenceError, match=r"every trial of other in .* diverged"):
        worse.run(tmp_path)


def test_a_reported_run_that_diverges_counts_as_guessing(finished, tmp_path):
    found, root = finished
    plain = found["plain", 1][0]
    link(plain.sources[:1], root, tmp_path)
    tuning = Tuning(method="plain", lr=1e30)
    result = dataclasses.replace(plain, choice=None, tuning=tuning).run(tmp_path)
    assert result["metrics"] == {"test_accuracy": 20.0, "diverged": 1.0, "lr": 1e30}


def test_a_network_whose_last_step_broke_it_has_diverged(finished, tmp_path, monkeypatch):
    found, root = finished
    plain = found["plain", 1][0]
    link(plain.sources[:1], root, tmp_path)
    broken = {"metrics": {"test_accuracy": 30.0, "test_loss": math.nan}, "seconds": 1.0}
    monkeypatch.setattr("regraft.jobs.finetune.engine.fit", lambda *_, **__: broken)
    tuning = Tuning(method="plain", lr=0.1)
    result = dataclasses.replace(plain, choice=None, tuning=tuning, points=0).run(tmp_path)
    assert result["metrics"] == {"test_accuracy": 20.0, "diverged": 1.0, "lr": 0.1}


def test_a_run_without_its_choice_or_source_says_so(finished, tmp_path):
    job = finished[0]["plain", 1][0]
    with pytest.raises(InputError, match="needs its learning rate and weight chosen first"):
        job.run(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        dataclasses.replace(job, choice=None).run(tmp_path / "elsewhere")


def test_what_cannot_judge_is_refused(tmp_path):
    data = dataclasses.replace(TASK.data, validation=0.0)
    choice = dataclasses.replace(
        quick(("scratch",))[0].choice, task=dataclasses.replace(TASK.from_scratch(), data=data)
    )
    with pytest.raises(InputError, match="has no validation images"):
        choice.run(tmp_path)
    with pytest.raises(InputError, match="grid or seeds is empty"):
        dataclasses.replace(choice, grid=()).run(tmp_path)


def test_a_run_that_diverges_on_a_folder_without_test_images_counts_as_guessing(tmp_path):
    data, draw = tmp_path / "pictures", np.random.default_rng(0)
    for name in ("ant", "bee", "cat", "dog"):
        (data / name).mkdir(parents=True)
        for i in range(8):
            pixels = draw.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(data / name / f"{i}.png")
    task = TunedTask(
        data=DataConfig(name=str(data), validation=0.5, image_size=8),
        model=ModelConfig(name="mlp", options={"widths": [4]}),
        shots=2,
        validation_images=8,
        optim=OptimConfig(epochs=2, batch_size=4),
    )
    job = TunedJob(
        setting="folder",
        arm="plain",
        task=task,
        tuning=Tuning(method="plain", lr=1e30),
        runtime=RuntimeConfig(accelerator="cpu", threads=1, seed=1),
    )
    metrics = job.run(tmp_path / "runs")["metrics"]
    assert (metrics["test_accuracy"], metrics["diverged"]) == (25.0, 1.0)
