"""`regraft align`: permute checkpoints to fit the first, so that any tool can merge them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from regraft.config import Augmentation, OptimConfig
from regraft.jobs.merge.config import AlignConfig, Matcher, StraightThroughSettings, Surrogate

from .json_option import Values
from .options import (
    Data,
    DataOptions,
    ModelOptions,
    Network,
    NormalisedOptions,
    Options,
    ResultOptions,
    RuntimeOptions,
    default_out,
)
from .output import tell

ONE_PROCESS = "it is for training; checkpoints are matched in one process, in float32"


@dataclass(frozen=True, kw_only=True)
class AlignOptions(Options):
    """What `regraft align` and `regraft merge` are both told."""

    checkpoints: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(help_behavior_hint="(two or more)")
    ]
    """Two or more checkpoints of one architecture: safetensors (or the index of shards), .pt, or
    run folders. The first stays as it is."""
    out: Path | None = None
    """Folder to make or go on with; runs/VERB-NAMES without it, after the checkpoints."""
    model: str | None = None
    """A built-in network, timm/NAME, torchvision/NAME or package.module:factory; without it what
    the first checkpoint says it is."""
    inputs: str | None = None
    """package.module:function that returns what the network of --model is called with, if that is
    not images: a tensor, a tuple, or a dict of keyword arguments. For tracing, and for proving
    --spec; without --data."""
    spec: Path | None = None
    """A spec.json of an earlier run, instead of tracing the model."""
    match: Matcher = "weights"
    """weights: without data. activations, ste: with --data. none: merge the models as they are."""
    data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A known data set or a folder of images, one subfolder a class: once for all models, or once
    for each."""
    augment: Augmentation = "none"
    """ste: what is done to the training images, as it was when the models were trained."""
    surrogate: Surrogate = "full"
    """ste: all training images, or this many a class: random, by herding, or condensed first."""
    per_class: int = 10
    """Images a class of a surrogate."""
    condensed: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """What `regraft condense` made of each data set, in the order of --data, instead of condensing
    here."""
    # Validation loss of the merged network after 600 steps, MNIST with Fashion-MNIST, seed 11, by
    # benchmarks/choose_straight_through.py with all data: MLP 0.473 at rate 0.1, 0.449 at 0.3, 0.438
    # at 1; ResNet-8 0.974 at 0.3, 0.996 at 1. With batches of one set in turn 0.1 was worse at both.
    ste_steps: int = 600
    """ste: steps of the latent network, with a matching at each."""
    ste_lr: float = 0.3
    """ste: its learning rate; it falls to 0 along a cosine."""
    statistics_images: int = 2000
    """Training images of each data set for activations and statistics."""
    batch_size: int = 128
    """Images in a batch."""
    num_classes: int | None = None
    """Number of classes; without it the rows of the checkpoint's classifier."""
    class_names: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Names of a model's classes, separated by commas: once for each model, for --heads union."""
    sets: Data = field(default_factory=DataOptions)
    network: Network = field(default_factory=ModelOptions)
    images: NormalisedOptions = field(default_factory=NormalisedOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    output: ResultOptions = field(default_factory=ResultOptions)

    def settings(self) -> Values:
        """Return the fields of an `AlignConfig`."""
        names = (
            "checkpoints", "inputs", "spec", "match", "statistics_images", "batch_size",
            "num_classes", "class_names",
        )  # fmt: skip
        images = self.images.config()
        return {
            **{name: getattr(self, name) for name in names},
            **{name: getattr(images, name) for name in ("image_size", "channels", "mean", "std")},
            "model": self.network.optional(self.model),
            "data": tuple(self.sets.config(name, augment=self.augment) for name in self.data),
            "ste": StraightThroughSettings(
                surrogate=self.surrogate,
                per_class=self.per_class,
                condensed=self.condensed,
                steps=self.ste_steps,
                optim=OptimConfig(
                    lr=self.ste_lr, epochs=1, schedule="cosine", batch_size=self.batch_size
                ),
            ),
            "runtime": self.runtime.config(refuse=("devices", "precision"), because=ONE_PROCESS),
        }

    def folder(self) -> Path:
        """Return the result folder."""
        return self.out or default_out(type(self).__name__.lower(), *self.checkpoints)


@dataclass(frozen=True, kw_only=True)
class Align(AlignOptions):
    """Permute the units of checkpoints so that they fit the first; what they compute stays the same.

    The folder gets aligned.safetensors (aligned-K.safetensors for model K of several), the
    permutations, spec.json, card.json and README.md. The files of two models are mapped, not loaded;
    three and more are aligned each to the mean of the others, in memory. Matching keeps n x n numbers
    for each group of n units, and tracing holds several copies of one model for its proof, which
    --spec of an earlier run spares.
    """

    def config(self) -> AlignConfig:
        """Return what the engine is told."""
        return AlignConfig(**self.settings())

    def run(self) -> int:
        """Align, and write the folder."""
        from regraft.jobs.merge.verbs import run_align

        out, json = self.folder(), self.output.json
        done = run_align(self.config(), out, bar=not json)
        tell(done, out, "align", as_json=json)
        return 0
