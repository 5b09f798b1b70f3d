"""Curves of runs: what their histories hold along training or a path, by arm, means over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from regraft.report import Line, Run

from .compare import Runs, mean_line

Point = tuple[float, float, float]
"""Epochs, seconds and validation accuracy."""


def arms_of(runs: Runs, setting: str, order: Sequence[str] = ()) -> list[str]:
    """Return the arms of a setting, those of `order` first and in its order."""
    there = dict.fromkeys(r.arm for r in runs if r.setting == setting)
    return sorted(there, key=lambda arm: order.index(arm) if arm in order else len(order))


def history_lines(
    runs: Runs,
    setting: str,
    *,
    split: str,
    x: str,
    y: str = "accuracy",
    arms: Iterable[str] | None = None,
) -> list[Line]:
    """Return a line for each arm whose histories hold `y` in rows of `split`, over their `x`.

    Means over seeds with 95% intervals, at the points that all seeds of an arm have.
    """
    runs = list(runs)
    drawn = []
    for arm in arms_of(runs, setting) if arms is None else arms:
        curves = [
            {float(row[x]): row[y] for row in r.history if row["split"] == split and y in row}
            for r in runs
            if (r.setting, r.arm) == (setting, arm)
        ]
        line = mean_line(arm, [c for c in curves if c])
        if line is not None:
            drawn.append(line)
    return drawn


def training_curve(run: Run) -> list[Point]:
    """Return validation accuracy by epochs and by seconds, those of a transfer before it counted.

    The first point is that before any training, where it was measured. Epochs of one run are taken
    to last equally long: metrics hold no times, as a repeated run must give the same ones.
    """
    if run.result is None:
        return []
    metrics = run.result.metrics
    before = metrics.get("transfer_seconds", 0.0)
    training = metrics.get("training_seconds", run.result.seconds or 0.0)
    rows: dict[int, dict[str, Any]] = {
        row["epoch"] + 1: row for row in run.history if row["split"] == "validation"
    }
    points = []
    if "untrained_validation_accuracy" in metrics:
        points.append((0.0, before, metrics["untrained_validation_accuracy"]))
    steps = max((row["step"] for row in rows.values()), default=1)
    for epoch in sorted(rows):
        row = rows[epoch]
        points.append((float(epoch), before + training * row["step"] / steps, row["accuracy"]))
    return points


def seconds_to(curve: Sequence[Point], accuracy: float) -> float | None:
    """Return the seconds of the first point at or above an accuracy, or None."""
    return next((seconds for _, seconds, reached in curve if reached >= accuracy), None)


def curves_of(runs: Runs, setting: str, arm: str) -> dict[int, list[Point]]:
    """Return the training curves of one arm by seed."""
    return {r.seed: training_curve(r) for r in runs if (r.setting, r.arm) == (setting, arm)}


def by_epoch(curve: Sequence[Point]) -> dict[float, float]:
    """Return the accuracies of a training curve by epoch."""
    return {epoch: accuracy for epoch, _, accuracy in curve}


def lines_by_epoch(runs: Runs, setting: str, order: Sequence[str]) -> list[Line]:
    """Return a line for each arm: validation accuracies by epoch, means over seeds."""
    runs, over = list(runs), []
    for arm in arms_of(runs, setting, order):
        curves = [by_epoch(c) for c in curves_of(runs, setting, arm).values() if c]
        line = mean_line(arm, curves)
        if line is not None:
            over.append(line)
    return over


def lines_by_seconds(runs: Runs, setting: str, order: Sequence[str]) -> list[Line]:
    """Return the same over the mean seconds of the seeds at each epoch."""
    runs, over = list(runs), []
    for line in lines_by_epoch(runs, setting, order):
        curves = curves_of(runs, setting, line.label).values()
        at = [
            math.fsum(seconds) / len(seconds)
            for epoch in line.x
            if (seconds := [s for c in curves for e, s, _ in c if e == epoch])
        ]
        over.append(replace(line, x=at))
    return over
