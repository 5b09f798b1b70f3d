"""How a transfer of the recipe `transfer` is done, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regraft.config import OptimConfig
from regraft.symmetry.transfer.transfer import Method


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """How a training is carried over, and how the target is trained on.

    `scratch` carries nothing over: the target is trained from its own initialisation.
    """

    by: Method | Literal["scratch"] = "fgmt"
    trajectory: Literal["straight", "recorded"] = "straight"
    """A straight line between the source's ends, or the states that were recorded."""
    steps: int = 10
    """T, the steps along it; a recorded one is thinned to as many."""
    spacing: Literal["uniform", "cosine"] = "uniform"
    """Of a straight line."""
    gradient_batches: int = 1
    """Batches of each gradient."""
    statistics: int = 2000
    """Training images that BatchNorm statistics are taken from, before every evaluation."""
    curve_images: int | None = 2000
    """Validation and test images for the accuracies along the steps; the chosen step and the last
    are measured on all."""
    points: int = 11
    """Networks measured along each line between a solution and the transferred one; 0 for none."""
    plane_points: int = 0
    """Of gmt and fgmt: networks along each side of the plane through the target's own solution, the
    oracle's network and the transferred one; 0 for none."""
    start: Literal["best", "final"] = "best"
    """Train on from the step of the best validation accuracy, or from the last."""
    then: OptimConfig | None = None
    """The training afterwards; None for none."""
