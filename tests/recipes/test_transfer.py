import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.data import load
from regraft.errors import InputError
from regraft.jobs.base import with_sources
from regraft.jobs.record import RecordJob, images_of
from regraft.jobs.transfer.config import TransferConfig
from regraft.jobs.transfer.job import TransferJob, pair_of
from regraft.models import build
from regraft.recipes import SCALES, load_recipe, reproduce
from regraft.recipes.recipe import Scale
from regraft.recipes.transfer.recipe import Experiment
from regraft.report import read_run
from regraft.train import load_state

module = importlib.import_module("regraft.recipes.transfer.recipe")

LOW = OptimConfig(lr=0.05, weight_decay=0.0, epochs=4, batch_size=50, schedule="constant")
MLP = Experiment(
    setting="digits/mlp",
    seeds=1,
    data=DataConfig(name="digits", train_size=400),
    model=ModelConfig(name="mlp", options={"widths": [48, 48], "init": "torch"}),
    train=LOW,
    runtime=RuntimeConfig(accelerator="cpu", threads=1),
    transfer=TransferConfig(
        trajectory_steps=3, points=3, gradient_batches=2, then=dataclasses.replace(LOW, epochs=2)
    ),
    states=4,
    hides_at=0.2,
)
CONV = dataclasses.replace(
    MLP,
    setting="digits/conv_small",
    model=ModelConfig(name="conv_small", width=0.25),
    train=dataclasses.replace(LOW, epochs=2),
    transfer=dataclasses.replace(MLP.transfer, statistics_images=200, curve_images=50),
    states=1,
)


def everything():
    conv = [CONV.job("naive", None, match="naive"), CONV.job("fgmt", match="fgmt")]
    return [*MLP.arms(), *conv, CONV.job("scratch", match="scratch"), *MLP.hidden()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Every arm of every kind, run once at a tiny size: (setting, arm) -> (job, result); the root."""
    root = tmp_path_factory.mktemp("transfer")
    found = {}
    for job in with_sources([job.with_seed(1) for job in everything()]):
        found[job.setting, job.arm] = (job, job.run(root))
    return found, root


def accuracy(job, state, part="test"):
    """Measure as plainly as it can be said."""
    splits = load(job.target.data)
    images = getattr(splits, part)
    network = build(job.target.model, num_classes=10, channels=1, image_size=8)
    network.load_state_dict(state)
    network.eval()
    x = (images.images.float() / 255 - splits.mean[0]) / splits.std[0]
    with torch.no_grad():
        answers = network(x).argmax(1)
    return 100 * (answers == images.labels).double().mean().item()


def rows_of(job, root, split):
    return [row for row in read_run(job.folder(root)).history if row["split"] == split]


# The jobs.


@pytest.mark.parametrize("scale", SCALES)
def test_arms_of_a_setting_share_their_networks_and_differ_in_the_method_alone(scale):
    jobs = load_recipe("transfer", scale, 2).jobs
    transfers = [job for job in jobs if isinstance(job, TransferJob)]
    settings = {}
    for job in transfers:
        settings.setdefault((job.setting, job.runtime.seed), []).append(job)
        seeds = (job.source.runtime.seed, job.target.runtime.seed)
        assert seeds == pair_of(job.runtime.seed)
        assert job.source.model == job.target.model
        if job.target.model.name == "mlp":
            assert job.target.model.options["init"] == "torch"
    for found in settings.values():
        assert all(job.source == found[0].source for job in found)
        assert all(job.target == found[0].target for job in found)
        assert all(job.transfer.then == found[0].transfer.then for job in found)
        assert {"naive", "oracle", "fgmt"} <= {job.arm for job in found}
    low, high = (
        [j for j in transfers if ("/lr=" in j.setting or "unnorm" in j.setting) is hides]
        for hides in (False, True)
    )
    assert {j.arm for j in low} >= {"scratch", "gmt", "initial_weights", "fgmt_recorded"}
    assert bool(high) == (scale != "paper")
    places = {job.folder(Path()): i for i, job in enumerate(jobs)}
    for job in jobs:
        assert all(places[s.folder(Path())] < places[job.folder(Path())] for s in job.sources)


def test_training_on_otherwise_starts_from_the_same_transfers():
    jobs = [j for j in load_recipe("transfer", "cpu").jobs if isinstance(j, TransferJob)]
    assert {j.runtime.seed for j in jobs} == set(range(11, 17))
    by = {(j.setting, j.arm, j.runtime.seed): j for j in jobs}
    conv = "fashion_mnist/conv_small=2"
    for arm in ("naive", "gmt", "fgmt", "scratch"):
        sgd, adamw = by[conv, arm, 11], by[f"{conv}/then=adamw", arm, 11]
        assert (sgd.source, sgd.target) == (adamw.source, adamw.target)
        other = dataclasses.replace(adamw.transfer, then=sgd.transfer.then, points=11)
        assert other == sgd.transfer
        assert (adamw.transfer.then.optimizer, adamw.transfer.then.lr) == ("adamw", 1e-4)
        assert adamw.transfer.then.epochs == sgd.transfer.then.epochs
        assert sgd.source.model.options["head_init"] == "torch"


def test_the_regimes_hide_by_the_rate_or_by_the_pixels_alone():
    jobs = [job for job in load_recipe("transfer", "cpu", 1).jobs if isinstance(job, TransferJob)]
    one = {job.setting: job for job in jobs if job.arm == "fgmt"}
    low = one["mnist/mlp=512-512"].source
    high, raw = (one[f"mnist/mlp=512-512/{r}"].source for r in ("lr=0.1", "unnormalised"))
    assert (low.optim.lr, low.data.normalize, low.optim.momentum) == (0.01, "own", 0.9)
    assert high.optim == dataclasses.replace(low.optim, lr=0.1)
    assert (high.data, raw.optim) == (low.data, low.optim)
    assert raw.data == dataclasses.replace(low.data, normalize="none")


def test_the_paper_scale_holds_the_published_settings():
    jobs = {
        (j.setting, j.arm): j
        for j in load_recipe("transfer", "paper").jobs
        if isinstance(j, TransferJob)
    }
    published = {
        # Rate, epochs, warm-up; T, batches of a gradient; the training afterwards.
        "mnist/mlp=4096": (0.01, 10, 0, 10, 1, "sgd", 0.01, 3),
        "cifar10/conv8": (0.05, 60, 0, 30, 2, "adamw", 1e-4, 10),
        "cifar100/conv8/from=cifar10": (0.05, 30, 0, 15, 1, "adamw", 1e-4, 10),
        "imagenet/resnet18": (0.1, 100, 5, 30, 100, "adamw", 1e-6, 10),
        "cars/resnet18/from=imagenet": (0.1, 30, 0, 15, 10, "adamw", 1e-4, 10),
        "cub/resnet18/from=imagenet": (0.1, 30, 0, 15, 10, "adamw", 1e-4, 10),
    }
    assert {setting for setting, _ in jobs} == set(published)
    for setting, expected in published.items():
        for arm in ("naive", "oracle", "gmt", "fgmt"):
            job = jobs[setting, arm]
            first, then, how = job.source.optim, job.transfer.then, job.transfer
            found = (
                first.lr,
                first.epochs,
                first.warmup_epochs,
                how.trajectory_steps,
                how.gradient_batches,
            )
            assert (*found, then.optimizer, then.lr, then.epochs) == expected
            assert (first.batch_size, then.batch_size, first.momentum) == (128, 128, 0.9)
            assert (how.start, how.points) == ("best", 101)
            assert (job.source.data.validation, job.source.data.split_seed) == (0.1, 777)
            fine = "/from=" in setting
            assert (job.source.start is not None) is (job.target.start is not None) is fine
    assert jobs["mnist/mlp=4096", "gmt"].source.model.options["bias"] is False
    assert [pair_of(seed) for seed in (1, 2, 3)] == [(101, 102), (201, 202), (301, 302)]


def test_what_cannot_be_transferred_is_refused(tmp_path, monkeypatch):
    job = MLP.job("fgmt", match="fgmt").with_seed(1)
    with pytest.raises(InputError, match=r"seed101 is not finished: .* run them first"):
        dataclasses.replace(job, target=dataclasses.replace(job.source)).run(tmp_path)
    other = dataclasses.replace(job.source, model=ModelConfig(name="conv_small"))
    with pytest.raises(InputError, match="source and target differ in model"):
        dataclasses.replace(job, source=other).run(tmp_path)
    with pytest.raises(InputError, match=r"scratch.* only trains: give then"):
        MLP.job("scratch", match="scratch", then=None).run(tmp_path)
    with pytest.raises(InputError, match="states=0: expected at least"):
        dataclasses.replace(job.source, states=0).run(tmp_path)
    whole = dataclasses.replace(job.source, data=dataclasses.replace(MLP.data, validation=0.0))
    with pytest.raises(InputError, match="no validation images"):
        whole.run(tmp_path)
    monkeypatch.setattr("regraft.jobs.record.load_once", lambda config: object())
    with pytest.raises(InputError, match="'cora' is a graph: a transfer needs images"):
        images_of(DataConfig(name="cora"))


# What they leave.


def test_a_training_is_recorded_from_its_start_to_its_end(finished):
    found, root = finished
    job, result = found["networks/digits/mlp", "trained"]
    line = job.trajectory(root)
    assert len(line) == 4
    torch.manual_seed(job.runtime.seed)
    first = build(job.model, num_classes=10, channels=1, image_size=8).state_dict()
    assert all(torch.equal(line.state(0)[k], v) for k, v in first.items())
    for i, row in enumerate(rows_of(job, root, "validation"), start=1):
        of = MLP.job("fgmt").with_seed(1)
        assert accuracy(of, line.state(i), "validation") == pytest.approx(row["accuracy"], abs=1e-3)
    last = load_state(job.folder(root) / "checkpoint.safetensors")["model"]
    assert all(torch.allclose(line.state(-1)[k], v, atol=1e-6) for k, v in last.items())
    assert result["metrics"]["test_accuracy"] > 60


def test_a_training_that_was_killed_ends_with_the_same_states(finished, tmp_path):
    found, root = finished
    job, _ = found["networks/digits/mlp", "trained"]
    hurried = dataclasses.replace(
        job, runtime=dataclasses.replace(job.runtime, checkpoint_seconds=0)
    )

    def stop(step, steps, row):
        if step == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.run(tmp_path, progress=stop)  # before its first checkpoint
    with pytest.raises(KeyboardInterrupt):
        hurried.run(tmp_path, progress=stop)
    with pytest.raises(InputError, match="is not finished"):
        job.trajectory(tmp_path)
    job.run(tmp_path)
    one, two = job.trajectory(root), job.trajectory(tmp_path)
    assert one.steps == two.steps
    for i in range(len(one.steps)):
        a, b = one.state(i), two.state(i)
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_fine_tuning_begins_where_the_other_ended_with_a_head_of_its_own(finished):
    found, root = finished
    base, _ = found["networks/digits/mlp", "trained"]
    few = dataclasses.replace(LOW, epochs=1)
    tuned = RecordJob(
        setting="networks/tuned",
        data=base.data,
        model=base.model,
        optim=few,
        runtime=base.runtime,
        start=base,
    )
    assert tuned.sources == (base,)
    assert tuned.with_seed(9).start.runtime.seed == 9
    assert tuned.with_data_root("x").start.data.root == "x"
    tuned.run(root)
    first, last = tuned.trajectory(root).state(0), base.trajectory(root).state(-1)
    for name, tensor in first.items():
        assert torch.equal(tensor, last[name]) is not name.startswith("head"), name


def test_the_naive_transfer_is_the_plain_sum(finished):
    found, root = finished
    job, result = found["digits/mlp", "naive"]
    source, target = (s.trajectory(root) for s in job.sources)
    a0, a1, b0 = source.state(0), source.state(-1), target.state(0)
    at = {s: {k: b0[k] + s / 3 * (a1[k] - a0[k]) for k in b0} for s in (0, 1, 2, 3)}
    steps = rows_of(job, root, "transfer")
    assert [row["step"] for row in steps] == [0, 1, 2, 3]
    for row in steps:
        assert accuracy(job, at[row["step"]]) == pytest.approx(row["accuracy"], abs=0.3)
    best = max(steps[1:], key=lambda row: row["validation_accuracy"])
    metrics = result["metrics"]
    assert metrics["best_step"] == best["step"]
    assert metrics["untrained_best_accuracy"] == pytest.approx(best["accuracy"])
    assert metrics["untrained_final_accuracy"] == pytest.approx(steps[-1]["accuracy"])
    mean = sum(row["accuracy"] for row in steps[1:]) / 3
    assert metrics["along_accuracy"] == pytest.approx(mean)
    assert metrics["gradients"] == metrics["tracing_seconds"] == 0


def test_permuted_changes_beat_plain_ones_before_training(finished):
    found, _ = finished
    at = {
        arm: result["metrics"]
        for (setting, arm), (_, result) in found.items()
        if setting == "digits/mlp"
    }
    for arm in ("gmt", "fgmt", "oracle"):
        assert at[arm]["along_accuracy"] > at["naive"]["along_accuracy"], arm
    assert at["gmt"]["gradients"] > at["fgmt"]["gradients"] == 6


def test_every_arm_trains_on_from_its_step_and_scratch_from_the_initialisation(finished):
    found, root = finished
    for (_, arm), (job, result) in found.items():
        if not isinstance(job, TransferJob) or job.transfer.then is None:
            continue
        metrics = result["metrics"]
        start = safetensors.torch.load_file(job.folder(root) / "transferred.safetensors")
        assert accuracy(job, start) == pytest.approx(metrics["untrained_test_accuracy"], abs=1e-3)
        end = safetensors.torch.load_file(job.folder(root) / "model.safetensors")
        assert accuracy(job, end) == pytest.approx(metrics["test_accuracy"], abs=1e-3)
        rows = rows_of(job, root, "validation")
        assert [row["epoch"] for row in rows] == [0, 1]
        total = metrics["transfer_seconds"] + metrics["training_seconds"]
        assert result["seconds"] == pytest.approx(total, abs=2e-3)
        if arm == "scratch":
            assert metrics["transfer_seconds"] == 0
            assert "target_barrier" not in metrics
            first = job.target.trajectory(root).state(0)
            assert all(torch.equal(start[k], first[k]) for k in job.target.trajectory(root).trained)
        else:
            assert metrics["transfer_seconds"] > 0
            assert metrics["untrained_test_accuracy"] == metrics["untrained_best_accuracy"]
            for short in ("target", "source", "between"):
                path = rows_of(job, root, f"path_{short}")
                assert [row["at"] for row in path] == [0, 0.5, 1]
                line = path[1]["loss"] - (path[0]["loss"] + path[2]["loss"]) / 2
                assert metrics[f"{short}_barrier"] == pytest.approx(max(line, 0), abs=1e-6)


def test_a_regime_without_training_is_measured_untrained_alone(finished):
    found, root = finished
    job, result = found["digits/mlp/lr=0.2", "fgmt"]
    assert "test_accuracy" not in result["metrics"]
    assert not rows_of(job, root, "validation")
    assert len(rows_of(job, root, "transfer")) == 4


def test_a_transfer_that_was_killed_is_not_computed_again(finished, tmp_path, monkeypatch):
    found, root = finished
    job, result = found["digits/mlp", "fgmt"]
    for source in job.sources:
        folder = source.folder(tmp_path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(source.folder(root))

    def stop(step, steps, row):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.run(tmp_path, progress=stop)
    monkeypatch.setattr(
        "regraft.jobs.transfer.steps.transfer", lambda *a, **k: pytest.fail("again")
    )
    again = job.run(tmp_path)
    same = {k for k in result["metrics"] if not k.endswith("seconds")}
    assert {k: again["metrics"][k] for k in same} == {k: result["metrics"][k] for k in same}
    history = [read_run(job.folder(place)).history for place in (root, tmp_path)]
    assert history[0] == history[1]
    monkeypatch.setattr("regraft.jobs.transfer.job.images_of", lambda *a: pytest.fail("read"))
    assert job.run(tmp_path)["metrics"] == again["metrics"]


# From the command to the report.


def test_a_recipe_leaves_its_tables_and_figures(finished, monkeypatch, tmp_path):
    _, root = finished
    monkeypatch.setattr(module, "_groups", lambda _: [Scale(everything, 1)])
    recipe = load_recipe("transfer", "smoke", 1)
    outcome = reproduce(recipe, root, workers=1, results=tmp_path)
    page = (tmp_path / "transfer_smoke.md").read_text()
    for words in ("Along accuracy", "Target barrier", "FGMT took", "undecided: too few seeds"):
        assert words in page
    figures = {f"transfer_smoke-{n}.svg" for n in ("along", "epochs", "seconds", "paths")}
    assert {p.name for p in tmp_path.glob("*.svg")} >= figures
    assert {row.arm for row in outcome.rows if row.setting == MLP.setting} == {
        job.arm for job in MLP.arms()
    }
    assert json.loads((tmp_path / "transfer_smoke.json").read_text())["recipe"] == "transfer"
