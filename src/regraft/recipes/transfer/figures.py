"""Curves of the recipe `transfer`, by steps, epochs and seconds, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from regraft.recipes.compare import mean_line
from regraft.recipes.curves import arms_of, by_epoch, curves_of, history_lines
from regraft.report import Line, Panel, Run, lines
from regraft.report.planes import planes

_NETWORKS = ("the target's own solution", "the oracle's network", "the transferred one")
"""What a plane goes through."""
_ORDER = ("naive", "oracle", "initial_weights", "gmt", "fgmt", "scratch")


def figures(runs: list[Run], settings: Sequence[str], full: Sequence[str]) -> dict[str, str]:
    """Draw accuracies along the steps, after them by epochs and by seconds, on lines and planes."""

    def along(setting: str, split: str, x: str) -> list[Line]:
        arms = [arm for arm in arms_of(runs, setting, _ORDER) if arm != "scratch"]
        return history_lines(runs, setting, split=split, x=x, arms=arms)

    line = "From the target's own solution (0) to the transferred network (1)"
    test, validation = "Test accuracy, untrained (%)", "Validation accuracy (%)"
    drawn = {
        "along": (
            {s: along(s, "transfer", "step") for s in settings},
            "Step of the transfer",
            test,
        ),
        "epochs": ({s: _by_epoch(runs, s) for s in full}, "Epochs after the transfer", validation),
        "seconds": (
            {s: _by_seconds(runs, s) for s in full},
            "Seconds, the transfer counted",
            validation,
        ),
        "paths": ({s: along(s, "path_target", "at") for s in full}, line, "Test accuracy (%)"),
    }
    made = {}
    for name, (by_setting, x, y) in drawn.items():
        panels = [Panel(title=s, lines=of) for s, of in by_setting.items() if of]
        if panels:
            made[name] = lines(panels, x_label=x, y_label=y, order=_ORDER)
    over = planes(runs, settings, _NETWORKS)
    return made if over is None else {**made, "planes": over}


def _by_epoch(runs: list[Run], setting: str) -> list[Line]:
    over = []
    for arm in arms_of(runs, setting, _ORDER):
        curves = [by_epoch(c) for c in curves_of(runs, setting, arm).values() if c]
        line = mean_line(arm, curves)
        if line is not None:
            over.append(line)
    return over


def _by_seconds(runs: list[Run], setting: str) -> list[Line]:
    """Return the same over the mean seconds of the seeds at each epoch."""
    over = []
    for line in _by_epoch(runs, setting):
        curves = curves_of(runs, setting, line.label).values()
        at = [
            math.fsum(seconds) / len(seconds)
            for epoch in line.x
            if (seconds := [s for c in curves for e, s, _ in c if e == epoch])
        ]
        over.append(replace(line, x=at))
    return over
