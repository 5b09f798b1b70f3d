import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.jobs.base import with_sources
from regraft.jobs.transfer.config import TransferConfig
from regraft.jobs.transfer.job import TransferJob
from regraft.recipes import load_recipe
from regraft.recipes.transfer.recipe import Experiment
from regraft.report import read_run
from regraft.report.planes import planes

MLP = Experiment(
    setting="digits/mlp",
    seeds=1,
    data=DataConfig(name="digits", train_size=300),
    model=ModelConfig(name="mlp", options={"widths": [24, 24], "init": "torch"}),
    train=OptimConfig(lr=0.05, weight_decay=0.0, epochs=3, batch_size=50, schedule="constant"),
    runtime=RuntimeConfig(accelerator="cpu", threads=1),
    transfer=TransferConfig(trajectory_steps=2, points=0, curve_images=50, plane_points=3),
)

NAMES = ("trained", "oracle", "transferred")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("planes")
    jobs = [MLP.job("fgmt", match="fgmt"), MLP.job("naive", None, match="naive")]
    for job in with_sources([job.with_seed(1) for job in jobs]):
        job.run(root)
    return {job.arm: job.with_seed(1) for job in jobs}, root


def test_the_plane_goes_through_the_trained_target_and_the_transferred_network(finished):
    jobs, root = finished
    history = read_run(jobs["fgmt"].folder(root)).history
    rows = [row for row in history if row["split"] == "plane"]
    assert len({(row["x"], row["y"]) for row in rows}) == len(rows) == 9
    assert all(0 <= row["accuracy"] <= 100 < 1e3 * row["loss"] for row in rows)
    first, oracle, last = ((r["x"], r["y"]) for r in history if r["split"] == "plane_network")
    assert first == (0, 0)
    assert oracle[0] > 0 == oracle[1]
    trained = jobs["fgmt"].target.trajectory(root).state(-1)
    start = load_file(jobs["fgmt"].folder(root) / "transferred.safetensors")
    apart = torch.cat([(start[k] - trained[k]).flatten() for k in start]).norm().item()
    assert torch.tensor(last).norm().item() == pytest.approx(apart, rel=1e-4)
    # Only what matches gradients has one.
    other = read_run(jobs["naive"].folder(root)).history
    assert not any(row["split"].startswith("plane") for row in other)


def test_planes_are_drawn_of_the_first_seed(finished):
    jobs, root = finished
    run = read_run(jobs["fgmt"].folder(root))
    later = dataclasses.replace(run, seed=2)
    drawn = planes([later, run], ["digits/mlp"], NAMES)
    assert drawn is not None
    assert "digits/mlp/fgmt, seed 1" in drawn
    assert "seed 2" not in drawn
    assert planes([read_run(jobs["naive"].folder(root))], ["digits/mlp"], NAMES) is None


@pytest.mark.parametrize(
    ("scale", "some"), [("smoke", False), ("cpu", False), ("gpu", True), ("paper", True)]
)
def test_planes_are_measured_where_there_is_a_gpu(scale, some):
    jobs = [j for j in load_recipe("transfer", scale, 1).jobs if isinstance(j, TransferJob)]
    full = [j for j in jobs if j.transfer.then is not None and j.transfer.match in ("gmt", "fgmt")]
    assert {job.transfer.plane_points > 0 for job in full} == {some}
    assert not any(job.transfer.plane_points for job in jobs if job not in full)
