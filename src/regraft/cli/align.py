"""`regraft align`: permute checkpoints to fit the first, so that any tool can merge them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from regraft.config import Augmentation, DataConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.jobs.merge.config import AlignConfig, Matcher, StraightThroughSettings, Surrogate

from .json_option import json_object
from .output import print_json, say


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """What `regraft align` and `regraft merge` are both told."""

    checkpoints: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(help_behavior_hint="(two or more)"),
    ]
    """Two or more checkpoints of one architecture: safetensors (or the index of shards), .pt, or
    run folders. The first stays as it is."""
    out: Path
    """Folder to make."""
    model: str | None = None
    """A built-in network, timm/NAME, torchvision/NAME or package.module:factory; without it what
    the first checkpoint says it is."""
    width: float = 1.0
    """Width factor of a built-in network."""
    model_options: str = "{}"
    """Further keyword arguments of the model's factory, as a JSON object."""
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
    data_root: str | None = None
    """Folder of the known data sets; without it REGRAFT_DATA, then ~/.cache/regraft/data."""
    offline: bool = False
    """Stop at a missing known set instead of fetching it."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Stop at an image that cannot be decoded, or warn and go on."""
    num_classes: int | None = None
    """Number of classes; without it the rows of the checkpoint's classifier."""
    class_names: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Names of a model's classes, separated by commas: once for each model, for --heads union."""
    image_size: int | None = None
    """Side of the images in pixels; without it that of the data, or what fits the checkpoint."""
    channels: int | None = None
    """Channels of the images, likewise."""
    mean: tuple[float, ...] = ()
    """Mean of each channel by which images are normalised; without it each data set's own."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel."""
    seed: int = 1
    """Seed of the matcher and of every draw."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute what is done with data."""
    threads: int | None = None
    """CPU threads."""
    json: bool = False
    """Print one JSON object instead of text."""

    def settings(self) -> dict[str, Any]:
        """Return the fields of an `AlignConfig`."""
        more = json_object(self.model_options)
        model = None
        if self.model is not None:
            model = ModelConfig(name=self.model, width=self.width, options=more)
        names = (
            "checkpoints", "inputs", "spec", "match", "statistics_images", "batch_size",
            "num_classes", "class_names", "image_size", "channels", "mean", "std",
        )  # fmt: skip
        return {
            **{name: getattr(self, name) for name in names},
            "model": model,
            "data": tuple(
                DataConfig(
                    name=name,
                    root=self.data_root,
                    download=not self.offline,
                    unreadable=self.unreadable,
                    augment=self.augment,
                )
                for name in self.data
            ),
            "ste": StraightThroughSettings(
                surrogate=self.surrogate,
                per_class=self.per_class,
                condensed=self.condensed,
                steps=self.ste_steps,
                optim=OptimConfig(
                    lr=self.ste_lr, epochs=1, schedule="cosine", batch_size=self.batch_size
                ),
            ),
            "runtime": RuntimeConfig(
                seed=self.seed, accelerator=self.accelerator, threads=self.threads
            ),
        }


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

        done = run_align(self.config(), self.out, bar=not self.json)
        if self.json:
            print_json({"out": str(self.out), **done.card})
            return 0
        if done.before:
            say(f"{self.out} is finished already; remove it to align again")
        for line in done.lines:
            say(line)
        say(f"aligned: {self.out}")
        return 0
