"""Curves of the recipe `transfer`, by steps, epochs and seconds, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from regraft.recipes.compare import mean_line
from regraft.report import Run
from regraft.report.figure import Line, Panel, lines
from regraft.report.planes import planes

_NETWORKS = ("the target's own solution", "the oracle's network", "the transferred one")
"""What a plane goes through."""
_ORDER = ("naive", "oracle", "initial_weights", "gmt", "fgmt", "scratch")

Point = tuple[float, float, float]
"""Epochs, seconds and validation accuracy."""


def training_curve(run: Run) -> list[Point]:
    """Return validation accuracy by epochs and by seconds, the transfer's own counted.

    The first point is that before any training, where it was measured. Epochs of one run are taken
    to last equally long: metrics hold no times, as a repeated run must give the same ones.
    """
    if run.result is None:
        return []
    metrics = run.result.metrics
    before = metrics.get("transfer_seconds", 0.0)
    training = metrics.get("training_seconds", run.result.seconds or 0.0)
    found = {r["epoch"] + 1: r for r in run.history if r["split"] == "validation"}
    points = []
    if "untrained_validation_accuracy" in metrics:
        points.append((0.0, before, metrics["untrained_validation_accuracy"]))
    steps = max((row["step"] for row in found.values()), default=1)
    for epoch in sorted(found):
        row = found[epoch]
        points.append((float(epoch), before + training * row["step"] / steps, row["accuracy"]))
    return points


def seconds_to(curve: Sequence[Point], accuracy: float) -> float | None:
    """Return the seconds of the first point at or above an accuracy, or None."""
    return next((seconds for _, seconds, found in curve if found >= accuracy), None)


def curves_of(runs: Iterable[Run], setting: str, arm: str) -> dict[int, list[Point]]:
    """Return the curves of one arm by seed."""
    return {r.seed: training_curve(r) for r in runs if (r.setting, r.arm) == (setting, arm)}


def by_epoch(curve: Sequence[Point]) -> dict[float, float]:
    """Return the accuracies of a curve by epoch."""
    return {epoch: accuracy for epoch, _, accuracy in curve}


def figures(runs: list[Run], settings: Sequence[str], full: Sequence[str]) -> dict[str, str]:
    """Draw accuracies along the steps, after them by epochs and by seconds, on lines and planes."""
    drawn = {
        "along": (
            [Panel(title=s, lines=_along(runs, s)) for s in settings],
            {"x_label": "Step of the transfer", "y_label": "Test accuracy, untrained (%)"},
        ),
        "epochs": (
            [Panel(title=s, lines=_by_epoch(runs, s)) for s in full],
            {"x_label": "Epochs after the transfer", "y_label": "Validation accuracy (%)"},
        ),
        "seconds": (
            [Panel(title=s, lines=_by_seconds(runs, s)) for s in full],
            {
                "x_label": "Seconds, the transfer counted",
                "y_label": "Validation accuracy (%)",
            },
        ),
        "paths": (
            [Panel(title=s, lines=_along(runs, s, "path_target", "at")) for s in full],
            {
                "x_label": "From the target's own solution (0) to the transferred network (1)",
                "y_label": "Test accuracy (%)",
            },
        ),
    }
    found = {}
    for name, (panels, labels) in drawn.items():
        kept = [panel for panel in panels if panel.lines]
        if kept:
            found[name] = lines(kept, **labels, order=_ORDER)
    over = planes(runs, settings, _NETWORKS)
    return found if over is None else {**found, "planes": over}


def _along(runs: list[Run], setting: str, split: str = "transfer", x: str = "step") -> list[Line]:
    """Return test accuracies over the steps, or along a line between networks, by arm."""
    found = []
    for arm in _arms(runs, setting):
        if arm == "scratch":
            continue
        curves = [
            {float(row[x]): row["accuracy"] for row in r.history if row["split"] == split}
            for r in runs
            if (r.setting, r.arm) == (setting, arm)
        ]
        line = mean_line(arm, [c for c in curves if c])
        if line is not None:
            found.append(line)
    return found


def _arms(runs: Iterable[Run], setting: str) -> list[str]:
    there = dict.fromkeys(r.arm for r in runs if r.setting == setting)
    return sorted(there, key=lambda arm: _ORDER.index(arm) if arm in _ORDER else len(_ORDER))


def _by_epoch(runs: list[Run], setting: str) -> list[Line]:
    found = []
    for arm in _arms(runs, setting):
        curves = [by_epoch(c) for c in curves_of(runs, setting, arm).values() if c]
        line = mean_line(arm, curves)
        if line is not None:
            found.append(line)
    return found


def _by_seconds(runs: list[Run], setting: str) -> list[Line]:
    """Return the same over the mean seconds of the seeds at each epoch."""
    found = []
    for line in _by_epoch(runs, setting):
        curves = curves_of(runs, setting, line.label).values()
        at = [
            math.fsum(seconds) / len(seconds)
            for epoch in line.x
            if (seconds := [s for c in curves for e, s, _ in c if e == epoch])
        ]
        found.append(Line(label=line.label, x=at, y=line.y, low=line.low, high=line.high))
    return found
