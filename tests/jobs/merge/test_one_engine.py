"""The command and the recipe's job merge by one engine: the same settings give the same bits."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from regraft.cli.merge import Merge
from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.data import load
from regraft.jobs.merge.job import MergeArm, MergeJob
from regraft.jobs.merge.verbs import run_merge
from regraft.jobs.progress import Bar
from regraft.recipes.merging.recipe import Pair

OPTIM = OptimConfig(lr=0.2, epochs=1, batch_size=24, schedule="cosine")


def write_images(folder, splits):
    """Write a data set as a folder of images with a part for testing."""
    image = pytest.importorskip("PIL.Image")
    for part, images in (("train", splits.train), ("test", splits.test)):
        for i, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
            path = folder / part / splits.classes[label] / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(pixels[0].numpy()).save(path)
    return str(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two folders of images, and networks trained on them; the second has more images."""
    root = tmp_path_factory.mktemp("pair")
    data = []
    for name, size, angle in (("upright", 150, 0.0), ("turned", 230, 90.0)):
        splits = load(DataConfig(name="digits", train_size=size, rotate=angle))
        folder = write_images(root / name, splits)
        data.append(DataConfig(name=folder, normalize="none", image_size=8))
    pair = Pair(
        setting="upright+turned",
        seeds=1,
        arms=(),
        a=data[0],
        b=data[1],
        model=ModelConfig(name="mlp", options={"widths": [12, 12]}),
        train=OptimConfig(lr=0.2, weight_decay=0.0, epochs=6, batch_size=50, schedule="constant"),
        runtime=RuntimeConfig(accelerator="cpu", threads=1, eval_every=8),
        merge=MergeArm(points=3, statistics=60, optim=OPTIM, per_class=3),
    )
    for job in pair.job("average", method="average").with_seed(1).sources:
        job.run(root)
    return pair, root


def command(job: MergeJob, root, out, **options):
    """The verb with the settings of a job."""
    arm = job.merge
    return Merge.of(
        checkpoints=(job.a.folder(root), job.b.folder(root)),
        out=out,
        data=(job.a.data.name, job.b.data.name),
        match={"straight_through": "ste", "average": "none"}.get(arm.method, arm.method),
        surrogate=arm.surrogate,
        per_class=arm.per_class,
        ste_lr=arm.optim.lr,
        batch_size=arm.optim.batch_size,
        statistics_images=arm.statistics,
        repair=arm.repair,
        points=arm.points,
        seed=job.runtime.seed,
        accelerator="cpu",
        threads=1,
        json=True,
        **options,
    )


@pytest.mark.parametrize("repair", ["none", "repair"])
@pytest.mark.parametrize(
    ("method", "surrogate"),
    [
        ("average", "full"),
        ("weights", "full"),
        ("activations", "full"),
        ("straight_through", "full"),
        ("straight_through", "random"),
    ],
)
def test_the_command_and_the_job_give_the_same_bits(
    method, surrogate, repair, pair, tmp_path, capsys
):
    settings, root = pair
    arm = f"{method}-{surrogate}-{repair}"
    job = settings.job(arm, method=method, surrogate=surrogate, repair=repair).with_seed(1)
    result = job.run(root)
    options = {}
    if method == "straight_through":
        options["ste_steps"] = -(-result["metrics"]["surrogate_images"] // OPTIM.batch_size)
        assert options["ste_steps"] > 1
    command(job, root, tmp_path / "out", **options).run()
    card = json.loads(capsys.readouterr().out)
    ours, theirs = (
        safetensors.torch.load_file(folder / "model.safetensors")
        for folder in (job.folder(root), tmp_path / "out")
    )
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    score = card["scores"]["merged" if repair == "none" else "merged and repaired"]
    assert score["accuracy"] == result["metrics"]["test_accuracy"]
    (label,) = [k for k in card["curves"]["1-2"] if k == path_label(method, repair)]
    assert card["curves"]["1-2"][label]["loss_barrier"] == result["metrics"]["loss_barrier"]


def path_label(method, repair):
    aligned = "not aligned" if method == "average" else "aligned"
    return aligned if repair == "none" else f"{aligned}, repaired"


class KilledError(BaseException):
    pass


def test_a_command_that_was_killed_goes_on_to_the_same_bits(pair, tmp_path, monkeypatch):
    settings, root = pair
    job = settings.job("killed", method="straight_through").with_seed(1)
    verb = command(job, root, tmp_path / "whole", ste_steps=40)
    config = verb.config()
    config = replace(config, runtime=replace(config.runtime, checkpoint_seconds=0.0))
    whole = run_merge(config, tmp_path / "whole", bar=False).card.data
    steps, out = [], tmp_path / "killed"

    def update(self, step, of, row):
        steps.append(step)
        if step == 25:
            raise KilledError

    monkeypatch.setattr(Bar, "update", update)
    with pytest.raises(KilledError):
        run_merge(config, out, bar=False)
    assert not (out / "card.json").exists()
    steps.clear()
    # The bar is updated at the same step again, from the checkpoint before it.
    monkeypatch.setattr(Bar, "update", lambda self, step, of, row: steps.append(step))
    again = run_merge(config, out, bar=False).card.data
    assert steps == list(range(21, 41))
    assert again["match"]["models"][1]["scores"] == whole["match"]["models"][1]["scores"]
    assert (out / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert not (out / "checkpoint.safetensors").exists()
