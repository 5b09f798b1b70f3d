"""Figures of runs and rows: learning curves, and what a metric costs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from regraft.errors import InputError

from . import wording
from .figure import Line, Panel, lines
from .runs import Run, read_run
from .table import Row


def learning_curve(path: Path) -> str:
    """Draw the accuracy along one run, validation where there is one; see `learning_curves`."""
    run = read_run(path)
    validated = any(row["split"] == "validation" for row in run.history)
    return learning_curves([run], split="validation" if validated else "train")


def learning_curves(
    runs: Iterable[Run],
    *,
    key: str = "accuracy",
    split: str = "validation",
    x: Literal["epoch", "step"] = "epoch",
    unit: str = "%",
    **options: Any,
) -> str:
    """Draw the mean of `key` over seeds for each arm, a panel for each setting.

    The band reaches from the lowest seed to the highest. Of an arm only finished runs count, or
    all while none has finished, and only points that all of them have. The first quarter does not
    set the vertical range, since the steep start of a curve would flatten its end.

    Args:
        runs: The runs, whose order is that of panels and arms.
        key: What of each row of the metrics to draw.
        split: Rows of this split count.
        x: What to draw it against.
        unit: Unit of `key`.
        options: Further arguments of `lines`.

    Raises:
        InputError: No run has such rows.
        MissingExtraError: matplotlib is not installed.
    """
    panels = curve_panels(runs, key=key, split=split, x=x)
    if not panels:
        raise InputError(
            f"key is {key!r} and split {split!r}, which no run has in its metrics.jsonl: "
            "choose what the runs recorded"
        )
    options.setdefault("x_label", wording.phrase(x))
    options.setdefault("y_label", wording.heading(f"{split} {key}", unit))
    options.setdefault("skip", 0.25)
    return lines(panels, **options)


def curve_panels(
    runs: Iterable[Run], *, key: str, split: str, x: Literal["epoch", "step"] = "epoch"
) -> list[Panel]:
    """Return the panels that `learning_curves` draws, with none for a setting without values."""
    runs = list(runs)
    groups: dict[str, dict[str, list[Run]]] = {run.setting: {} for run in runs}
    for run in sorted(runs, key=lambda run: run.control is not None):
        groups[run.setting].setdefault(run.arm, []).append(run)
    panels = []
    for setting, arms in groups.items():
        curves = (_curve(arm, members, key, split, x) for arm, members in arms.items())
        drawn = [curve for curve in curves if curve is not None]
        if drawn:
            panels.append(Panel(title=setting, lines=drawn))
    return panels


def efficiency(
    rows: Iterable[Row], x: str = "width", *, along: str = "width", **options: Any
) -> str:
    """Draw the metric of each arm with its 95% interval against what it costs.

    Args:
        rows: Rows of one metric.
        x: A cost of the rows (`trainable_parameters`, `stored_bytes`, `peak_memory_bytes` or
            `seconds`), or a name that the settings give a number, as in `.../width=0.5`.
        along: The name whose values make up one line; what else a setting says names its panel.
        options: Further arguments of `lines`; the axis is logarithmic unless `log_x` is false.

    Raises:
        InputError: The rows are of several metrics, or none has a value of `x`.
        MissingExtraError: matplotlib is not installed.
    """
    rows = list(rows)
    if len({(row.metric, row.unit) for row in rows}) > 1:
        raise InputError("rows are of several metrics: draw each in a figure of its own")
    panels: dict[str, dict[str, list[tuple[float, Row]]]] = {}
    for row in rows:
        value = position(row, x)
        if value is not None:
            title = without(row.setting, along)
            panels.setdefault(title, {}).setdefault(row.arm, []).append((value, row))
    if not panels:
        raise InputError(
            f"x is {x!r}, which no row has: expected a cost such as stored_bytes, or a name in "
            "the settings as in .../width=0.5"
        )
    options.setdefault("x_label", wording.phrase(x.removesuffix("_bytes")))
    options.setdefault("y_label", wording.heading(rows[0].metric, rows[0].unit))
    options.setdefault("x_text", _WRITERS.get(x, "{:g}".format))
    drawn = [
        Panel(title=title, lines=[_costed(arm, points) for arm, points in arms.items()])
        for title, arms in panels.items()
    ]
    options.setdefault("log_x", True)
    beside = bool(options.pop("beside", x not in _WRITERS))
    return lines(drawn, spread="bars", beside=beside, **options)


def without(setting: str, name: str) -> str:
    """Return a setting without the part that gives `name` its value."""
    return "/".join(part for part in setting.split("/") if not part.startswith(f"{name}="))


_WRITERS: dict[str, Callable[[float], str]] = {
    "stored_bytes": wording.size,
    "peak_memory_bytes": wording.size,
    "trainable_parameters": wording.quantity,
    "seconds": wording.duration,
}


def _costed(arm: str, points: list[tuple[float, Row]]) -> Line:
    points = sorted(points, key=lambda point: point[0])
    return Line(
        label=arm,
        x=[value for value, _ in points],
        y=[row.mean for _, row in points],
        low=[row.low for _, row in points],
        high=[row.high for _, row in points],
    )


def position(row: Row, x: str) -> float | None:
    """Return what `efficiency` draws a row against, None where it has no such value."""
    if x in _WRITERS:
        return getattr(row, x)
    match = re.search(rf"(?:^|/){re.escape(x)}=([\d.eE+-]+)(?:/|$)", row.setting)
    try:
        return float(match[1]) if match else None
    except ValueError:
        return None


def _curve(arm: str, runs: list[Run], key: str, split: str, x: str) -> Line | None:
    members = [run for run in runs if run.finished] or runs
    curves = [
        {
            row[x]: row[key]
            for row in run.history
            if row["split"] == split and _is_finite(row.get(key)) and _is_finite(row.get(x))
        }
        for run in members
    ]
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not shared:
        return None
    columns = [[curve[position] for curve in curves] for position in shared]
    return Line(
        label=arm,
        x=shared,
        y=[math.fsum(column) / len(column) for column in columns],
        low=[min(column) for column in columns] if len(curves) > 1 else None,
        high=[max(column) for column in columns] if len(curves) > 1 else None,
    )


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
