"""What an alignment or a merge is told, as plain data without torch; ranges stand beside the fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.config import check as check_ranges
from regraft.errors import InputError

Matcher = Literal["weights", "activations", "ste", "none"]
Surrogate = Literal["full", "random", "herding", "condensed"]
Heads = Literal["shared", "separate", "union"]


@dataclass(frozen=True, kw_only=True)
class StraightThroughSettings:
    """How straight-through matching learns, and from which images."""

    surrogate: Surrogate = "full"
    """All training images, or a few of each class: at random, by herding, or condensed ones."""
    per_class: int = 10
    """Images of each class and data set in a surrogate that is not full."""
    condensed: tuple[Path, ...] = ()
    """The condensed set of each data set, in their order; without them they are made here."""
    steps: int | None = 600
    """Steps of the latent network; None for the epochs of `optim`."""
    sweeps: int = 100
    """Sweeps of the matching at each step, at most; the next goes on from where it ended."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=0.3, epochs=1, schedule="cosine")
    )
    """SGD of the latent network; over `steps` the schedule runs once from end to end."""

    def check(self) -> None:
        """Refuse numbers out of their range.

        Raises:
            InputError: The first of them.
        """
        _at_least_1(self, "per_class", "sweeps")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"--ste-steps {self.steps}: expected at least 1")
        if not 0 < self.optim.lr < math.inf:
            raise InputError(f"--ste-lr {self.optim.lr}: expected a finite number above 0")
        check_ranges(self.optim)
        if self.condensed and self.surrogate != "condensed":
            raise InputError("--condensed goes with --match ste --surrogate condensed: add them")


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Checkpoints, network, data and matcher."""

    checkpoints: tuple[Path, ...]
    """Two or more of one architecture; the first stays as it is."""
    model: ModelConfig | None = None
    """The network; None for what the first checkpoint says it is."""
    inputs: str | None = None
    """package.module:function that returns what a network is called with that takes no images."""
    spec: Path | None = None
    """A spec.json of an earlier run, instead of tracing the network."""
    match: Matcher = "weights"
    data: tuple[DataConfig, ...] = ()
    """Data sets: one for all models, or one for each."""
    ste: StraightThroughSettings = field(default_factory=StraightThroughSettings)
    statistics_images: int = 2000
    """Training images of each data set for activations and statistics; labels are not used."""
    batch_size: int = 128
    """Images in a batch of these."""
    num_classes: int | None = None
    """Rows of the classifier; None for those of the checkpoint's."""
    class_names: tuple[str, ...] = ()
    """Names of each model's classes, separated by commas."""
    image_size: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] = ()
    """Mean of each channel; without it what a model says, else the data set's own."""
    std: tuple[float, ...] = ()
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Refuse what contradicts itself or is out of its range, before anything is read.

        Raises:
            InputError: Too few checkpoints, data that are not there for a matcher that needs them, or
                a number out of its range.
        """
        count = len(self.checkpoints)
        if count < 2:
            raise InputError(
                f"{count} checkpoint(s) given: expected two or more of one architecture"
            )
        if self.match in ("activations", "ste") and not self.data:
            raise InputError(
                f"--match {self.match} compares what the models do with images: add --data, or take "
                "--match weights"
            )
        if self.data and len(self.data) not in (1, count):
            raise InputError(
                f"--data is given {len(self.data)} times for {count} models: give it once for all, or "
                "once for each"
            )
        if self.inputs is not None:
            self._check_inputs()
        if self.class_names and len(self.class_names) != count:
            raise InputError(
                f"--class-names is given {len(self.class_names)} times for {count} models: give it "
                "once for each"
            )
        self.ste.check()
        if self.ste.surrogate != "full" and self.match != "ste":
            raise InputError(
                f"--surrogate {self.ste.surrogate} is for --match ste: --match {self.match} has no "
                "use of it"
            )
        _at_least_1(
            self, "statistics_images", "batch_size", "num_classes", "image_size", "channels"
        )
        width = 1.0 if self.model is None else self.model.width
        if not 0 < width < math.inf:
            raise InputError(f"--width {width}: expected a finite number above 0")
        check_moments(self.mean, self.std)
        check_ranges(self.runtime)

    def _check_inputs(self) -> None:
        if self.model is None or ":" not in self.model.name:
            raise InputError(
                "--inputs goes with --model package.module:factory: name the network so"
            )
        if ":" not in str(self.inputs):
            raise InputError(f"--inputs {self.inputs}: expected package.module:function")
        if self.model.width != 1:
            raise InputError(
                f"--width {self.model.width:g} is for networks of images: use --model-options with "
                "--inputs"
            )
        for name in ("data", "num_classes", "class_names", "image_size", "channels", "mean", "std"):
            if getattr(self, name) not in (None, ()):
                raise InputError(
                    f"--inputs is for a network that takes no images: leave out "
                    f"--{name.replace('_', '-')} or --inputs"
                )


@dataclass(frozen=True, kw_only=True)
class MergeConfig(AlignConfig):
    """An alignment, and how the aligned models become one."""

    combine: str = "average"
    """A name of `regraft.symmetry.merge.methods.MERGE_METHODS`."""
    weights: tuple[float, ...] = ()
    """Weight of each model; equal without it."""
    base: Path | None = None
    """The model that all were fine-tuned from; each is then aligned to it alone."""
    factor: float | None = None
    """Factor on the merged difference from the base."""
    density: float | None = None
    """Share of each model's differences that is kept."""
    ties_scope: Literal["model", "tensor"] | None = None
    """Whether that is the share of the whole model, or of each tensor."""
    heads: Heads = "shared"
    repair: Literal["auto", "reset", "repair", "none"] = "auto"
    points: int = 25
    """Points of the curves between two models; 0 draws none."""
    curve_images: int | None = 1000
    """Test images of each data set for the curves; None for all."""
    controls: bool = True
    """Measure what the merge is held against as well: no alignment, no repair, the ensemble."""
    stream: bool = False
    """Merge tensor by tensor, without a network in memory."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the way to combine, by the name that it has for them."""
        names = {"scale": self.factor, "density": self.density, "scope": self.ties_scope}
        return {k: v for k, v in names.items() if v is not None}

    def check(self) -> None:
        """Refuse what contradicts itself or is out of its range, before anything is read.

        Raises:
            InputError: As `AlignConfig.check`, or options that the way to combine has no use of.
        """
        super().check()
        self._check_numbers()
        if not self.data and self.repair in ("reset", "repair"):
            raise InputError(f"--repair {self.repair} takes statistics from images: add --data")
        if self.inputs is not None and self.heads != "shared":
            raise InputError(f"--heads {self.heads} needs images: leave --inputs or --heads out")
        if self.match == "ste" and self.heads == "separate":
            raise InputError(
                "--match ste trains through one classifier and --heads separate keeps several: take "
                "--heads union"
            )
        if self.stream and (self.data or self.heads != "shared"):
            what = "--data" if self.data else f"--heads {self.heads}"
            raise InputError(
                f"--stream holds no whole network, which {what} needs: leave one of them out"
            )

    def _check_numbers(self) -> None:
        factors = () if self.factor is None else (("factor", self.factor),)
        for name, value in (*factors, *(("weights", weight) for weight in self.weights)):
            if not math.isfinite(value):
                raise InputError(f"--{name} {value}: expected a finite number")
        if self.density is not None and not 0 < self.density <= 1:
            raise InputError(
                f"--density {self.density}: expected the share of values to keep, in (0, 1]"
            )
        if self.points < 0 or self.points == 1:
            raise InputError(f"--points {self.points}: expected 0, or at least the two ends")
        _at_least_1(self, "curve_images")


def check_moments(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse --mean and --std that images cannot be normalised by.

    Raises:
        InputError: One is given without the other, or a number is out of its range.
    """
    if len(mean) != len(std):
        raise InputError("--mean and --std go together: give one number of each for a channel")
    for value in mean:
        if not math.isfinite(value):
            raise InputError(f"--mean {value}: expected a finite number")
    for value in std:
        if not 0 < value < math.inf:
            raise InputError(f"--std {value}: expected a finite number above 0")


def _at_least_1(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected at least 1")
