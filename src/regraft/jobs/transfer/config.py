"""How a training run is carried over to another initialisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regraft.config import OptimConfig
from regraft.errors import InputError

TransferMethod = Literal["fgmt", "gmt", "initial_weights", "naive", "oracle"]


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """How a training is carried over, measured, and trained on from."""

    match: TransferMethod | Literal["scratch"] = "fgmt"
    """fgmt and gmt match gradients; initial_weights needs no data; naive and oracle are controls.
    scratch carries nothing over: the target is trained from its own initialisation."""
    controls: bool = False
    """Carry the source over by the controls as well, and train on beside them."""
    trajectory: Literal["straight", "recorded"] = "straight"
    """A straight line between the source's ends, or the states that were recorded."""
    trajectory_steps: int | None = 10
    """T, the steps along it; a recorded one is thinned to as many, or all of its states are taken."""
    spacing: Literal["uniform", "cosine"] = "uniform"
    """Steps on a straight line: equal, or as a learning rate on a cosine advances."""
    factor: float = 1.0
    """Factor on the weight changes."""
    gradient_batches: int = 1
    """Batches of each gradient."""
    batch_size: int = 128
    """Images in a batch of gradients."""
    statistics_images: int = 2000
    """Training images that BatchNorm statistics are taken from, before every evaluation."""
    curve_images: int | None = 2000
    """Validation and test images for the scores along the steps; the best step and the last are
    measured on all."""
    points: int = 11
    """Networks measured along each line between a solution and the transferred one; 0 for none."""
    plane_points: int = 0
    """Networks along each side of the plane through the target's own solution, the oracle's network
    and the transferred one; 0 for none."""
    keep_steps: bool = False
    """Keep every step's checkpoint, not only the best and the last."""
    start: Literal["best", "final"] = "best"
    """Go on from the step of the best validation accuracy, or from the last."""
    then: OptimConfig | None = None
    """The training afterwards; None for none."""

    def check(self) -> None:
        """Refuse numbers that no transfer can use, named as on the command line.

        Raises:
            InputError: The first of them.
        """
        for name in ("trajectory_steps", "gradient_batches", "batch_size", "statistics_images",
                     "curve_images"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} {value}: expected at least 1")
        for name, ends in (("points", "the two ends"), ("plane_points", "the two ends of a side")):
            value = getattr(self, name)
            if value < 0 or value == 1:
                raise InputError(
                    f"--{name.replace('_', '-')} {value}: expected 0, or at least {ends}"
                )
        if not math.isfinite(self.factor):
            raise InputError(f"--factor {self.factor}: expected a finite number")


@dataclass(frozen=True, kw_only=True)
class TransferFiles:
    """The files that a training is carried over from and to."""

    recording: Path | None = None
    """Folder of a recorded trajectory, or of the run that holds one."""
    from_init: Path | None = None
    """Instead: the source's checkpoint before its training."""
    from_final: Path | None = None
    """Instead: the source's checkpoint after its training."""
    to: Path
    """The initialisation to carry the run over to: a checkpoint of the same architecture."""
    to_final: Path | None = None
    """That network after its own training, where there is one: adds the oracle and the paths to it."""
    spec: Path | None = None
    """A spec.json of an earlier run, instead of tracing the model."""
    cut: Literal["refuse", "warn", "use"] = "refuse"
    """A recording cut short: refuse it, use what is whole and say so, or use it silently."""
    labels: Literal["by-name", "by-number"] = "by-name"
    """Which row of the classifier a class of the data is: that of its name, where the checkpoints name
    their classes, or that of its number."""

    def check(self) -> None:
        """Refuse a source that is named twice, by half, or not at all.

        Raises:
            InputError: What is missing.
        """
        pair = (self.from_init, self.from_final)
        if (self.recording is None) == (not any(pair)):
            raise InputError(
                "source: give the folder of one recorded trajectory, or --from-init and --from-final "
                "instead"
            )
        if any(pair) and not all(pair):
            missing = "--from-final" if self.from_init else "--from-init"
            raise InputError(f"{missing} is missing: a straight trajectory has two ends")

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """The checkpoints: the source's, then the target's, each as far as they are named."""
        first = self.from_init if self.folder is None else self.folder / "initial.safetensors"
        named = (first, self.from_final, self.to, self.to_final)
        return tuple(path for path in named if path is not None)

    @property
    def folder(self) -> Path | None:
        """The folder of the recording: the one that was named, or `trajectory` in it."""
        if self.recording is None:
            return None
        inner = self.recording / "trajectory"
        whole = (self.recording / "index.json").exists()
        return inner if not whole and inner.is_dir() else self.recording


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What the images of a network are, where that is not to be what data and checkpoints say."""

    image_size: int | None = None
    """Side of the images in pixels; without it that of the data, or what fits the checkpoint."""
    channels: int | None = None
    """Channels of the images, likewise."""
    mean: tuple[float, ...] = ()
    """Mean of each channel by which images are normalised; without it the data set's own."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel."""

    def check(self) -> None:
        """Refuse --mean and --std that images cannot be normalised by.

        Raises:
            InputError: One is given without the other, or a number is out of its range.
        """
        if len(self.mean) != len(self.std):
            raise InputError("--mean and --std go together: give one number of each for a channel")
        for value in self.mean:
            if not math.isfinite(value):
                raise InputError(f"--mean {value}: expected a finite number")
        for value in self.std:
            if not 0 < value < math.inf:
                raise InputError(f"--std {value}: expected a finite number above 0")
