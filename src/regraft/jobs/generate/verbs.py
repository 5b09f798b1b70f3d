"""What `regraft synth inspect`, `synth make` and `pretrain` do: jobs on somebody's own generator."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from regraft.checkpoints.model_card import is_elsewhere
from regraft.checkpoints.write import write_model
from regraft.config import DataConfig, ModelConfig, PretrainConfig, SourceConfig, to_dict
from regraft.config.check import AT_LEAST_1, AT_LEAST_2
from regraft.data import ImageSet, Splits, with_channels
from regraft.data.memory import in_memory
from regraft.errors import InputError
from regraft.generators.pseudo import Pretraining
from regraft.generators.sources import GeneratorQuality, Source, load_source, measure, write_bank
from regraft.jobs.base import Job
from regraft.jobs.data import load_once
from regraft.jobs.verb import write
from regraft.models import build
from regraft.report import Cell, Figure, ResultCard, Table, command_of, contact_sheet, png, read_run
from regraft.streams import Counter
from regraft.train import RunFolder, make_fabric, peak_bytes, reset_peak
from regraft.train.loop import Progress

from .drive import drive
from .pretrain import about_of
from .sets import MEAN, STD

_COLUMNS = 10


@dataclass(frozen=True, kw_only=True)
class InspectJob(Job):
    """Everything that determines the verdict on a generator.

    Attributes:
        source: The generator.
        data: Real images of its classes.
        channels: Bring them to 1 or 3 channels.
        samples: Generated images to learn from.
    """

    setting: str = "synth"
    arm: str = "inspect"
    source: SourceConfig
    data: DataConfig
    channels: int | None = None
    samples: Annotated[int, AT_LEAST_2] = 10_000

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Measure and write the card; see `Job.work`."""
        fabric = make_fabric(self.runtime)
        source = load_source(self.source, device=fabric.device)
        real, test, classes = _real_images(self.data, source, self.channels)
        quality = measure(source, real, test, samples=self.samples, seed=self.runtime.seed)
        card = _inspection(self, source, quality, classes)
        write(folder.path, card)
        return {
            "metrics": {
                "cas": quality.cas,
                "spread": quality.spread,
                "agreement": quality.agreement,
                **({} if quality.real is None else {"real": quality.real}),
            },
            "verdict": quality.verdict,
            "useful": quality.useful,
            "collapsed": quality.collapsed,
            "copied": quality.copied,
            "notes": source.notes,
            "seconds": 0.0,
        }


def _real_images(
    data: DataConfig, source: Source, channels: int | None
) -> tuple[ImageSet, ImageSet | None, tuple[str, ...]]:
    if data.image_size is None:
        data = replace(data, image_size=source.image_shape[1])
    splits = load_once(data)
    if not isinstance(splits, Splits):
        raise InputError(f"data {data.name!r} is a graph: a generator is measured beside images")
    wanted = source.image_shape[0] if channels is None else channels
    if splits.channels != wanted:
        splits = with_channels(splits, wanted)
    what = f"data {data.name!r}: a measurement of a generator"
    train, test = in_memory(splits.train, what), splits.test
    return train, None if test is None else in_memory(test, what), splits.classes


def _samples(source: Source, seed: int) -> bytes:
    rows = min(source.classes, 30)
    labels = torch.arange(rows).repeat_interleave(_COLUMNS)
    images = source.sample(len(labels), labels=labels, generator=Counter(seed, "grid"))
    return png(contact_sheet(images, columns=_COLUMNS))


def _inspection(
    job: InspectJob, source: Source, quality: GeneratorQuality, classes: tuple[str, ...]
) -> ResultCard:
    real = "not measured" if quality.real is None else f"{quality.real:.1f}%"
    mark: Any = "wrong" if quality.collapsed else "right"
    measured = Table(
        title="Measured",
        headings=("", "generated", "real"),
        rows=[
            ("accuracy on real images of a network trained on", f"{quality.cas:.1f}%", real),
            ("distance of two images of a class, over that of real ones",
             Cell(f"{quality.spread:.2f}", mark), "1.00"),
            ("agreement with a classifier of real images", f"{quality.agreement:.1f}%", "–"),
        ],
        note=f"{quality.samples:,} generated images, tested on {quality.tested:,} real ones. A collapsed "
        "generator agrees with every classifier: the first two rows decide.",
    )  # fmt: skip
    by_class = Table(
        title="By class",
        headings=("class", "agreement", "spread over real"),
        rows=[
            (name, f"{a:.0f}%", f"{s:.2f}")
            for name, a, s in zip(
                classes, quality.agreement_by_class, quality.spread_by_class, strict=True
            )
        ],
    )
    grid = Figure(
        title="Samples",
        content=lambda: _samples(source, job.runtime.seed),
        file="samples.png",
        note=f"{_COLUMNS} images of each class, a row a class, from the first class on.",
        caption="samples, a row a class",
    )
    notes = []
    if quality.collapsed:
        notes.append(
            "do not train on it: choose another generator, or one that was trained with more care"
        )
    return ResultCard(
        kind="inspect",
        title=f"Generator {Path(job.source.name).name}",
        summary=(quality.verdict.split(":")[0].split(".")[0].lower(), job.data.name),
        lines=[quality.verdict, *source.notes],
        tables=[measured, by_class],
        figures=[grid],
        notes=notes,
        data={"useful": quality.useful, "collapsed": quality.collapsed, "cas": quality.cas,
              "spread": quality.spread, "agreement": quality.agreement, "real": quality.real,
              "copied": quality.copied},
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BankJob(Job):
    """Everything that determines a bank of generated images, which lies in its folder.

    Attributes:
        source: The generator.
        count: Number of images.
    """

    setting: str = "synth"
    arm: str = "make"
    source: SourceConfig
    count: Annotated[int, AT_LEAST_1] = 10_000

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Make the images and write the card; see `Job.work`."""
        fabric = make_fabric(self.runtime)
        source = load_source(self.source, device=fabric.device)
        warned = collapse_warning(source, seed=self.runtime.seed)
        if warned:
            warnings.warn(warned, stacklevel=2)
        reset_peak()
        bank = write_bank(
            source,
            folder.path,
            count=self.count,
            seed=self.runtime.seed,
            about={"source": self.source.name},
            progress=progress,
        )
        grid = Figure(
            title="Samples",
            content=lambda: _samples(bank, self.runtime.seed),
            file="samples.png",
            caption="samples, a row a class",
        )
        shape = "x".join(map(str, bank.image_shape))
        card = ResultCard(
            kind="bank",
            title=f"A bank of {Path(self.source.name).name}",
            lines=[f"{self.count:,} images of {shape}, {bank.classes} classes.", *source.notes],
            figures=[grid],
            notes=[warned] if warned else [],
            files={
                "images.npy": "the images, uint8 [N, C, H, W]",
                "labels.npy": "the class that each was made for",
                "bank.json": "the manifest: seed, classes, digest of the generator",
            },
            next=[command_of("pretrain", source=str(folder.path.absolute()), out="pretrained/")],
            data={"digest": bank.digest(), "images": self.count},
        )
        write(folder.path, card)
        return {
            "metrics": {"images": self.count},
            "digest": bank.digest(),
            "notes": source.notes,
            "seconds": 0.0,
            "peak_memory_bytes": peak_bytes(),
        }


@dataclass(frozen=True, kw_only=True)
class SourcePretrainJob(Job):
    """Everything that determines a pre-training from a user's own generator: `model.safetensors`.

    Attributes:
        source: The generator, or a bank of it.
        model: The network.
        pretrain: How long, and how.
    """

    setting: str = "pretrain"
    arm: str = "pp"
    keeps_checkpoint = False  # stored as the model

    source: SourceConfig
    model: ModelConfig
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Pre-train and write network and card; see `Job.work`."""
        fabric = make_fabric(self.runtime)
        source = load_source(self.source, device=fabric.device)
        warned = collapse_warning(source, seed=self.runtime.seed)
        if warned:
            warnings.warn(warned, stacklevel=2)
        torch.manual_seed(self.runtime.seed)
        channels, height, _ = source.image_shape
        shape = {"channels": channels, "image_size": height}
        network = build(self.model, num_classes=source.classes, **shape).to(fabric.device)
        moments: Any = {"mean": (MEAN,) * channels, "std": (STD,) * channels}
        settings: Any = to_dict(self.pretrain)
        work = Pretraining(network, source, **settings, **moments, seed=self.runtime.seed)
        result = drive(work, network, folder, self.runtime, progress)
        names = source.class_names or tuple(str(i) for i in range(source.classes))
        out = folder.path
        about = about_of(self.model, shape, names, "pseudo pre-training")
        write_model(out / "model.safetensors", network, about)
        card = ResultCard(
            kind="pretrain",
            title=f"{self.model.name} pre-trained on {Path(self.source.name).name}",
            lines=[
                f"{self.pretrain.steps:,} steps of {self.pretrain.batch_size} generated images in "
                f"{result['seconds']:.0f} s; {work.newest['accuracy']:.0f}% of the last batch right.",
                *source.notes,
            ],
            tables=[
                Table(
                    title="Training",
                    headings=("step", "loss"),
                    rows=_curve(out),
                )
            ],
            notes=[warned] if warned else [],
            files={"model.safetensors": "the weights; a fine-tuning puts a new classifier on them"},
            next=[
                command_of(
                    "finetune",
                    data="LABELLED",
                    checkpoint=str((out / "model.safetensors").absolute()),
                    # The file says what network it is, code outside it aside.
                    model=self.model.name if is_elsewhere(self.model.name) else None,
                )
            ],
            data={"train_accuracy": work.newest["accuracy"]},
        )
        write(out, card)
        return {**result, "notes": source.notes}


def _curve(folder: Path) -> list[tuple[str, str]]:
    rows = read_run(folder).history
    every = max(1, len(rows) // 10)
    return [(str(r["step"]), f"{r['loss']:.3f}") for r in rows[::every]]


def collapse_warning(source: Source, *, seed: int, least: float = 0.25) -> str:
    """Return a sentence where images of a class hardly differ beside those of others; else "".

    Without real images only this can be told: the mean distance of two images of one class over that of
    two images of different classes. Of real sets it is .7 to .95; below `least` a generator has collapsed.
    """
    from regraft.generators.sources.quality import within_class

    n = 20 * source.classes if source.classes <= 50 else 1000
    labels = torch.arange(n) % source.classes
    images = source.sample(n, labels=labels, generator=Counter(seed, "collapse")).cpu()
    pool = ImageSet((images * 255).round().to(torch.uint8), labels, source.classes)
    alone = ImageSet(pool.images, torch.zeros_like(labels), 1)
    inside, across = within_class(pool, seed).nanmean().item(), within_class(alone, seed).item()
    if source.classes < 2 or across == 0 or inside / across >= least:
        return ""
    return (
        f"the generator looks collapsed: two of its images of one class differ {inside / across:.2f} "
        "times as much as images of different classes; measure it with `regraft synth inspect`"
    )
