"""Curves of the recipe `transfer`, by steps, epochs and seconds, and how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.recipes.curves import arms_of, history_lines, lines_by_epoch, lines_by_seconds
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
        "epochs": (
            {s: lines_by_epoch(runs, s, _ORDER) for s in full},
            "Epochs after the transfer",
            validation,
        ),
        "seconds": (
            {s: lines_by_seconds(runs, s, _ORDER) for s in full},
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
