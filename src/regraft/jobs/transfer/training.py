"""Training on after a transfer, beside training from scratch and from the naive transfer."""

from __future__ import annotations

from typing import Any

from regraft.config import OptimConfig, RuntimeConfig
from regraft.jobs.stages import Shown, begin
from regraft.report.runs import read_run
from regraft.train import RunFolder, fit, make_fabric

from .networks import Networks, State


def train_on(
    networks: Networks,
    optim: OptimConfig,
    runtime: RuntimeConfig,
    folder: RunFolder,
    name: str,
    state: State,
    progress: Shown = None,
) -> dict[str, Any]:
    """Train from a state on in a folder, or go on, and leave the network there.

    Whatever it starts from, the batches are the same.

    Returns:
        The result of the training.
    """
    images = networks.images
    if images is None:
        raise ValueError("training on needs images")
    networks.model.load_state_dict(state)
    return fit(
        networks.model,
        images.training(optim),
        optim=optim,
        runtime=runtime,
        folder=folder,
        fabric=make_fabric(runtime),
        progress=begin(progress, f"training, {name}"),
    )


def curve_of(
    folder: RunFolder, result: dict[str, Any], before: float, accuracy: float
) -> list[dict[str, Any]]:
    """Return validation accuracy by epochs and by seconds.

    Epochs of one training are taken to last equally long: metrics hold no times, as a repeated run
    must give the same ones.

    Args:
        folder: The training's.
        result: Its result.
        before: Seconds that went before it.
        accuracy: Validation accuracy before it.
    """
    rows = {r["epoch"]: r for r in read_run(folder.path).history if r["split"] == "validation"}
    steps = max((row["step"] for row in rows.values()), default=1)
    curve = [{"epoch": 0, "seconds": before, "validation_accuracy": accuracy}]
    for epoch, row in sorted(rows.items()):
        seconds = before + result["seconds"] * row["step"] / steps
        reached = {"validation_accuracy": row["accuracy"]}
        curve.append({"epoch": epoch + 1, "seconds": seconds, **reached})
    return curve


def reached(curve: list[dict[str, Any]], accuracy: float) -> dict[str, Any] | None:
    """Return the first point of a curve at or above a validation accuracy, or None."""
    return next((p for p in curve if p["validation_accuracy"] >= accuracy), None)
