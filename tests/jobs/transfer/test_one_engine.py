"""The command and the recipe's job carry a training over by one engine: to the same bits."""

import pytest
import torch
from safetensors.torch import load_file

from regraft.checkpoints.model_card import header
from regraft.cli.transfer import Transfer
from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.errors import InputError, RegraftError
from regraft.files import write_tensors
from regraft.jobs.base import with_sources
from regraft.jobs.data import load_once
from regraft.jobs.train import facts
from regraft.jobs.transfer.config import TransferConfig
from regraft.recipes.transfer.recipe import Experiment
from regraft.report import read_run
from regraft.train import RunFolder, finished_state, load_state, read_json

SGD = OptimConfig(lr=0.05, weight_decay=0.0, epochs=3, batch_size=50, schedule="constant")
NETWORKS = {
    "mlp": ModelConfig(name="mlp", options={"widths": [32, 32], "init": "torch"}),
    "conv": ModelConfig(name="conv_small", width=0.25),  # with BatchNorm
}


@pytest.fixture(scope="module", params=NETWORKS)
def both(request, tmp_path_factory):
    """A job of the recipe and the command with the same settings and seed, both through."""
    root = tmp_path_factory.mktemp(request.param)
    then = OptimConfig(lr=0.02, weight_decay=0.001, epochs=2, batch_size=50, schedule="cosine")
    experiment = Experiment(
        setting=f"digits/{request.param}",
        seeds=1,
        data=DataConfig(name="digits"),
        model=NETWORKS[request.param],
        train=SGD,
        runtime=RuntimeConfig(accelerator="cpu", threads=1),
        transfer=TransferConfig(
            trajectory_steps=3, points=3, plane_points=3, gradient_batches=2, factor=0.9,
            statistics_images=300, curve_images=100, then=then,
        ),
    )  # fmt: skip
    job = experiment.job("fgmt", match="fgmt").with_seed(2)
    for one in with_sources([job]):
        one.run(root)
    ends = {}
    for name, source in (("a", job.source), ("b", job.target)):
        line = source.trajectory(root)
        about = facts(source.plain, load_once(source.data))
        for which, i in (("init", 0), ("final", -1)):
            ends[name, which] = root / f"{name}-{which}.safetensors"
            write_tensors(ends[name, which], dict(line.state(i)), header(about))
    verb = Transfer.of(
        from_init=ends["a", "init"],
        from_final=ends["a", "final"],
        to=ends["b", "init"],
        to_final=ends["b", "final"],
        out=root / "out",
        data="digits",
        match="fgmt",
        trajectory_steps=3,
        gradient_batches=2,
        batch_size=50,
        factor=0.9,
        statistics_images=300,
        curve_images=100,
        points=3,
        plane_points=3,
        then_train=2,
        lr=0.02,
        weight_decay=0.001,
        schedule="cosine",
        seed=2,
        accelerator="cpu",
        threads=1,
        json=True,
    )
    assert verb.run() == 0
    return job.folder(root), root / "out"


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[k], other[k]) for k in one)


def test_the_networks_are_the_same_before_and_after_training(both):
    job, out = both
    best = out / "model-best.safetensors"
    start = load_file(best if best.exists() else out / "model.safetensors")
    assert equal(load_file(job / "transferred.safetensors"), start)
    trained = finished_state(load_state(out / "then_train/fgmt/checkpoint.safetensors"))
    assert equal(load_file(job / "model.safetensors"), trained)


def test_what_was_measured_is_the_same(both):
    job, out = both
    metrics, card = read_run(job).result.metrics, read_json(out / "card.json")
    history = read_run(job).history
    steps = [row for row in history if row["split"] == "transfer"][1:]
    assert [row["accuracy"] for row in steps] == [r["test_accuracy"] for r in card["steps"]]
    assert [row["cosine"] for row in steps] == [r["cosine"] for r in card["steps"]]
    scores = card["scores"]["fgmt, final step (3)"]
    assert metrics["untrained_final_accuracy"] == scores["test_accuracy"]
    for name, short in (("trained target", "target"), ("permuted source", "source")):
        assert metrics[f"{short}_barrier"] == card["paths"][name]["loss_barrier"]
    plane = [row["loss"] for row in history if row["split"] == "plane"]
    assert plane == [loss for row in card["plane"]["loss"] for loss in row]
    trained = card["then_train"]["fgmt"]["metrics"]
    assert {k: metrics[k] for k in trained} == trained
    rows = [row["accuracy"] for row in history if row["split"] == "validation"]
    curve = card["then_train"]["fgmt"]["curve"]
    assert rows == [point["validation_accuracy"] for point in curve[1:]]
    assert metrics["untrained_validation_accuracy"] == curve[0]["validation_accuracy"]


def held(job, out):
    """Open the folder as the command does."""
    seed = job.runtime.seed
    return RunFolder(out, config=job.config(), arm="transfer", seed=seed)


def test_a_second_command_is_refused_in_one_sentence(both, tmp_path, monkeypatch):
    _, done = both
    path = done / "model.safetensors"
    out = tmp_path / "out"
    job = Transfer.of(out=out, to=path, from_init=path, from_final=path, match="naive").job()
    with held(job, out):
        before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
        with pytest.raises(RegraftError, match="is being written by another process"):
            job.run(out)
        assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_a_factory_that_has_changed_is_another_question(both, tmp_path, monkeypatch):
    _, done = both
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "net_of_a_transfer.py"
    module.write_text("def make(**shape): ...\n")
    path, out = done / "model.safetensors", tmp_path / "out"
    job = Transfer.of(
        out=out, to=path, from_init=path, from_final=path, match="naive",
        model="net_of_a_transfer:make",
    ).job()  # fmt: skip
    with held(job, out):
        pass
    module.write_text("def make(**shape): ...  # changed\n")
    with pytest.raises(InputError, match="the module of --model has changed since"):
        job.run(out)
