"""The command and the recipe's job fine-tune by one engine: the same settings give the same bits."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regraft.cli.finetune import FinetuneVerb
from regraft.config import (
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    TicketConfig,
)
from regraft.data import load
from regraft.jobs.finetune.engine import tuner
from regraft.jobs.finetune.tuned_job import TunedJob
from regraft.jobs.finetune.tuned_task import TunedTask, Tuning
from regraft.jobs.train import TrainJob
from regraft.train import finished_state, load_state, make_fabric

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

CPU = RuntimeConfig(accelerator="cpu", threads=1)
MODEL = ModelConfig(name="conv_small", width=0.25)
TUNED = OptimConfig(
    weight_decay=0.0, nesterov=True, epochs=3, batch_size=8, schedule="cosine", select="best"
)


def write_images(folder, classes, each):
    """Write some classes of the digits as a folder of images with all three parts."""
    splits = load(DataConfig(name="digits", only_classes=classes))
    images = splits.train
    for k in classes:
        rows = (images.labels == k).nonzero().flatten()[: sum(each.values())].tolist()
        for part, n in each.items():
            (folder / part / f"digit{k}").mkdir(parents=True)
            for i in (rows.pop() for _ in range(n)):
                picture = Image.fromarray(images.images[i, 0].numpy())
                picture.save(folder / part / f"digit{k}" / f"{i:04d}.png")
    return str(folder)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A target of three digits, and a network trained on four others; where its run lies."""
    root = tmp_path_factory.mktemp("engine")
    old = write_images(root / "old", (0, 1, 2, 3), {"train": 20, "val": 4, "test": 4})
    new = write_images(root / "new", (4, 5, 6), {"train": 7, "val": 9, "test": 11})
    source = TrainJob(
        setting="source",
        arm="dense",
        data=DataConfig(name=old, image_size=8),
        model=MODEL,
        ticket=TicketConfig(method="dense"),
        optim=OptimConfig(lr=0.1, epochs=4, batch_size=20),
        runtime=CPU,
    )
    data = DataConfig(name=new, image_size=8, augment="crop")
    task = TunedTask(data=data, model=MODEL, source=source, validation_images=None, optim=TUNED)
    source.with_seed(2).run(root)
    return task, root


@pytest.mark.parametrize(
    ("method", "weight", "options"),
    [
        ("plain", None, {}),
        ("adarand", 0.3, {"prior": "orthogonal"}),
        ("delta", 0.1, {}),
        ("co_tuning", 1.0, {}),
        ("core_tuning", 0.1, {}),
        ("lp_ft", None, {}),
    ],
)
def test_the_command_and_the_job_give_the_same_bits(
    method, weight, options, task, tmp_path, capsys
):
    settings, root = task
    tuning = Tuning(method=method, options=options, lr=0.03, weight=weight)
    job = TunedJob(setting="one", arm=method, task=settings, tuning=tuning, runtime=CPU)
    job = job.with_seed(2)
    with job.open(tmp_path / "job") as folder:
        result = job.work(folder, root, None)
    verb = FinetuneVerb.of(
        data=settings.data.name,
        model=MODEL.name,
        width=MODEL.width,
        checkpoint=job.task.source.folder(root) / "model.safetensors",
        out=tmp_path / "verb",
        method=method,
        method_options=json.dumps(options),
        lr=(0.03,),
        weight=() if weight is None else (weight,),
        epochs=3,
        batch_size=8,
        optimizer="sgd",
        weight_decay=0.0,
        augment="crop",
        image_size=8,
        seed=2,
        accelerator="cpu",
        threads=1,
        json=True,
    )
    assert verb.run() == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert (
        metrics.items() >= {k: v for k, v in result["metrics"].items() if k[:2] in "vate"}.items()
    )
    ours = finished_state(load_state(tmp_path / "job" / "checkpoint.safetensors"))
    theirs = load_file(tmp_path / "verb" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # Every loss on the way, too.
    rows = [
        [row for row in map(json.loads, path.read_text().splitlines()) if row["split"] != "train"]
        for path in (tmp_path / name / "metrics.jsonl" for name in ("job", "verb"))
    ]
    assert rows[0] == rows[1]


@dataclass(frozen=True)
class Drawn:
    """A further loss that pulls the classifier to a point, with a state of its own."""

    strength: float

    def term(self, model, context):
        return _Drawn(self.strength, context)


class _Drawn:
    def __init__(self, strength, context):
        self.strength, self.classifier, self.steps = strength, context.classifier, []

    def loss(self, model, step):
        self.steps.append(step)
        weight = model.get_submodule(self.classifier).weight
        return self.strength * (weight - 3.0).square().mean() * (1 + len(self.steps))

    def state_dict(self):
        return {"steps": list(self.steps)}

    def load_state_dict(self, state):
        self.steps = list(state["steps"])


class KilledError(Exception):
    pass


def job_of(settings, **more):
    verb = FinetuneVerb.of(
        data=settings.data.name, model=MODEL.name, width=MODEL.width, method="plain", lr=(0.03,),
        epochs=3, batch_size=8, image_size=8, accelerator="cpu", threads=1, checkpoint_seconds=0,
    )  # fmt: skip
    return replace(verb.job(), **more)


def test_a_further_loss_trains_and_goes_on_after_an_interruption(task, tmp_path):
    settings, _ = task
    plain, job = job_of(settings), job_of(settings, extras=(Drawn(5.0),))
    assert job.config()["extras"] == [{"strength": 5.0}]
    ends = {}
    for name, one in (("plain", plain), ("drawn", job)):
        one.run_in(tmp_path / name)
        ends[name] = load_file(tmp_path / name / "model.safetensors")["head.weight"]
    assert (ends["drawn"] - 3).abs().mean() < 0.8 * (ends["plain"] - 3).abs().mean()

    def stop(step, steps, row):
        if step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        job.run_in(tmp_path / "killed", progress=stop)
    job.run_in(tmp_path / "killed")
    again = load_file(tmp_path / "killed" / "model.safetensors")
    whole = load_file(tmp_path / "drawn" / "model.safetensors")
    assert all(torch.equal(again[k], whole[k]) for k in whole)
    # Another strength is another run.
    assert job_of(settings, extras=(Drawn(1.0),)).config() != job.config()


def test_a_method_takes_its_references_from_every_image_once():
    splits = load(DataConfig(name="digits", only_classes=(0, 1), validation=0.1))
    labels = splits.train.labels
    rows = torch.cat([(labels == 0).nonzero()[:12, 0], (labels == 1).nonzero()[:1, 0]])
    splits = replace(splits, train=splits.train.subset(rows))
    start = TunedTask(data=DataConfig(name="digits"), model=MODEL).start(
        splits, Path(), seed=1, want_source=False
    )
    engine = tuner(
        start,
        splits,
        FinetuneConfig(method="adarand", balanced_sampling=True),
        replace(TUNED, batch_size=4),
        CPU,
        make_fabric(CPU),
    )
    shown, taken = (
        torch.cat([y for _, y, _ in source.batches(0)]).bincount().tolist()
        for source in (engine.batches.train, engine.once)
    )
    assert shown == [12, 12]
    assert taken == [12, 1]
    _, method, _ = engine._prepared(None, 1)
    # A class of one image takes the pooled spread; shown over again its own would be about zero.
    assert float(method.std[1].mean()) > 0.1 * float(method.std[0].mean())
