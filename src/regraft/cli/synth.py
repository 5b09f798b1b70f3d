"""`regraft synth` and `regraft pretrain`: a generator judged, a bank of it, a network trained on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from regraft.config import PretrainConfig, SourceConfig
from regraft.config.generate import SOURCES

from .json_option import json_object
from .options import (
    Data,
    DataOptions,
    LongRuntimeOptions,
    ModelOptions,
    Network,
    Options,
    OutputOptions,
    RuntimeOptions,
    default_out,
    pick,
)
from .output import tell


@dataclass(frozen=True, kw_only=True)
class SourceOptions(Options):
    """More about the generator; what is left out is looked up in one batch, and said."""

    weights: Path | None = None
    """File of its weights, for package.module:factory."""
    source_options: str = "{}"
    """Further keyword arguments of the factory, as a JSON object; of a pipeline its own arguments."""
    classes: int | None = None
    """Number of classes."""
    latent: int | None = None
    """Length of a latent."""
    method: str | None = None
    """Method to call instead of forward or decode."""
    labels: Literal["int", "onehot"] | None = None
    """How labels are handed over."""
    pixels: Literal["[-1,1]", "[0,1]", "[0,255]"] | None = None
    """Range of its pixels."""
    image_shape: tuple[int, int, int] | None = None
    """Channels, height and width, for an output that is flat and no grey square."""

    def config(self, name: str) -> SourceConfig:
        """Return the generator of a name.

        Raises:
            InputError: A number is out of its range, or the options are no JSON object.
        """
        weights = None if self.weights is None else str(self.weights)
        options = json_object(self.source_options, "--source-options")
        return pick(SourceConfig, self.values(), name=name, weights=weights, options=options)


_SOURCE = tyro.conf.arg(help=f"{SOURCES}.")
Generator = Annotated[SourceOptions, tyro.conf.arg(name="generator")]


def _name(source: str) -> str:
    return source.rpartition(":")[2] if ":" in source else Path(source).name


@dataclass(frozen=True, kw_only=True)
class SynthInspect(Options):
    """Is this generator worth using? Measures it beside real images and says so in words.

    The classification accuracy score (a small network trained on its images, tested on real ones), how
    much images of one class differ beside real ones, agreement with a classifier, and a picture of
    samples. A collapsed generator is called useless however well classifiers agree with it.
    """

    source: Annotated[str, tyro.conf.Positional, _SOURCE]
    data: str
    """Real images of its classes: a known data set or a folder, one subfolder a class."""
    out: Path | None = None
    """Folder to make; runs/inspect-NAME by default."""
    samples: int = 10_000
    """Generated images to learn from."""
    channels: int | None = None
    """Bring the real images to 1 or 3 channels; by default those of the generator."""
    generator: Generator = field(default_factory=SourceOptions)
    sets: Data = field(default_factory=DataOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Measure and tell."""
        from regraft.jobs.generate.verbs import InspectJob
        from regraft.jobs.verb import run_carded

        job = InspectJob(
            source=self.generator.config(self.source),
            data=self.sets.config(self.data, validation=0.0),
            channels=self.channels,
            samples=self.samples,
            runtime=self.runtime.config(),
        )
        out = self.out or default_out("inspect", _name(self.source))
        tell(run_carded(job, out), out, "inspect", as_json=self.output.json)
        return 0


@dataclass(frozen=True, kw_only=True)
class SynthMake(Options):
    """Make a bank: images of a generator on disk, with their labels and a manifest.

    Training from a bank costs no generation and never holds more than a batch of it in memory. An
    interrupted bank is gone on with by the same command.
    """

    source: Annotated[str, tyro.conf.Positional, _SOURCE]
    out: Path | None = None
    """Folder to make or go on with; runs/make-NAME by default."""
    count: int = 10_000
    """Number of images."""
    generator: Generator = field(default_factory=SourceOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Make the images and tell."""
        from regraft.jobs.generate.verbs import BankJob
        from regraft.jobs.progress import Bar
        from regraft.jobs.verb import run_carded

        job = BankJob(
            source=self.generator.config(self.source),
            count=self.count,
            runtime=self.runtime.config(),
        )
        out = self.out or default_out("make", _name(self.source))
        with Bar(enabled=not self.output.json, noun="image", describe=lambda _: "") as bar:
            done = run_carded(job, out, bar.update)
        tell(done, out, "make", as_json=self.output.json)
        return 0


@dataclass(frozen=True, kw_only=True)
class Pretrain(Options):
    """Pre-train a network, of any architecture, on images of a generator (PP).

    Leaves model.safetensors to start a fine-tuning from: `regraft finetune --checkpoint`. The same
    command goes on after an interruption.
    """

    source: Annotated[str, _SOURCE]
    model: str = "conv_small"
    """A built-in network, timm/NAME, torchvision/NAME or package.module:factory."""
    out: Path | None = None
    """Folder to make; runs/pretrain-NAME by default."""
    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 64
    """Generated images a step."""
    lr: float = 0.05
    """Learning rate at the start of a cosine."""
    weight_decay: float = 1e-4
    """Weight decay."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser; adamw, with --lr 1e-3, for transformers."""
    generator: Generator = field(default_factory=SourceOptions)
    network: Network = field(default_factory=ModelOptions)
    runtime: LongRuntimeOptions = field(default_factory=LongRuntimeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Pre-train and tell."""
        from regraft.jobs.generate.verbs import SourcePretrainJob
        from regraft.jobs.progress import Bar
        from regraft.jobs.verb import run_carded

        job = SourcePretrainJob(
            source=self.generator.config(self.source),
            model=self.network.config(self.model),
            pretrain=pick(PretrainConfig, self.values()),
            runtime=self.runtime.config(),
        )
        out = self.out or default_out("pretrain", _name(self.source))
        with Bar(enabled=not self.output.json) as bar:
            done = run_carded(job, out, bar.update)
        tell(done, out, "pre-train", as_json=self.output.json)
        return 0
