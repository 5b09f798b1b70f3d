"""How a training run is carried over to another initialisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from regraft.config import OptimConfig, check
from regraft.config.check import AT_LEAST_1, FINITE, POINTS
from regraft.errors import InputError

TransferMethod = Literal["fgmt", "gmt", "initial_weights", "naive", "oracle"]

LABELS = {
    "gmt": "GMT",
    "fgmt": "FGMT",
    "naive": "naive",
    "oracle": "oracle",
    "initial_weights": "initial weights",
    "scratch": "from scratch",
}
"""What the methods are called for people."""


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
    trajectory_steps: Annotated[int | None, AT_LEAST_1] = 10
    """T, the steps along it; a recorded one is thinned to as many, or all of its states are taken."""
    spacing: Literal["uniform", "cosine"] = "uniform"
    """Steps on a straight line: equal, or as a learning rate on a cosine advances."""
    factor: Annotated[float, FINITE] = 1.0
    """Factor on the weight changes."""
    gradient_batches: Annotated[int, AT_LEAST_1] = 1
    """Batches of each gradient."""
    batch_size: Annotated[int, AT_LEAST_1] = 128
    """Images in a batch of gradients."""
    statistics_images: Annotated[int, AT_LEAST_1] = 2000
    """Training images that BatchNorm statistics are taken from, before every evaluation."""
    curve_images: Annotated[int | None, AT_LEAST_1] = 2000
    """Validation and test images for the scores along the steps; the best step and the last are
    measured on all."""
    points: Annotated[int, POINTS] = 11
    """Networks measured along each line between a solution and the transferred one; 0 for none."""
    plane_points: Annotated[int, POINTS] = 0
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
        check(self)


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
