"""Values over planes through networks as SVG text, drawn by matplotlib as `figure.lines` draws lines."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regraft.errors import InputError, MissingExtraError

from . import svg
from .figure import _STYLE, _wrapped

_LEVELS = 12
_DARK, _LIGHT = "#1c2128", "#ffffff"


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Values on a grid, and points that are marked with their number.

    Attributes:
        title: What it is.
        x: Horizontal coordinates.
        y: Vertical coordinates.
        values: Value at (x[j], y[i]) as values[i][j].
        points: Coordinates of what is marked 1, 2, ...
    """

    title: str
    x: Sequence[float]
    y: Sequence[float]
    values: Sequence[Sequence[float]]
    points: Sequence[Sequence[float]] = ()


def surfaces(panels: Sequence[Surface], *, label: str, log: bool = False, columns: int = 2) -> str:
    """Draw values over planes as filled contours with one scale for all panels.

    Both axes of a panel have the same unit, so that lengths and angles are those of the plane. What
    is not finite is left out.

    Args:
        panels: What to draw.
        label: Label of the scale, e.g. `Loss (nats)`.
        log: Put the contours at equal ratios instead of equal steps; values of 0 or less are then
            left out.
        columns: Panels in a row, at most.

    Raises:
        InputError: There is nothing to draw, or a grid does not fit its coordinates.
        MissingExtraError: matplotlib is not installed.
    """
    known = [value for panel in panels for value in _values(panel) if _drawn(value, log=log)]
    if not known:
        raise InputError("panels hold no values: give at least one surface with finite ones")
    try:
        import matplotlib as mpl
        import numpy as np
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "drawing a figure") from error

    levels = _levels(min(known), max(known), log=log)
    columns = min(columns, len(panels))
    height = -(-len(panels) // columns)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        figure = Figure(figsize=(4.7 * columns + 0.9, 3.6 * height), layout="constrained")
        FigureCanvasSVG(figure)
        grid = figure.subplots(height, columns, squeeze=False)
        filled: Any = None
        for i, axes in enumerate(grid.flat):
            if i >= len(panels):
                axes.remove()
                continue
            panel = panels[i]
            values = np.ma.masked_invalid(np.array(panel.values, dtype=float))
            values = np.ma.masked_less_equal(values, 0.0) if log else values
            filled = axes.contourf(
                panel.x, panel.y, values, levels=levels, cmap="viridis",
                norm="log" if log else None, extend="neither",
            )  # fmt: skip
            for number, (x, y) in enumerate(panel.points, start=1):
                axes.plot(x, y, "o", markersize=12, color=_LIGHT, markeredgecolor=_DARK, zorder=3)
                axes.annotate(
                    str(number), (x, y), color=_DARK, ha="center", va="center_baseline",
                    fontsize=9, zorder=4,
                )  # fmt: skip
            axes.set_title(_wrapped(panel.title), loc="left", parse_math=False)
            axes.set_aspect("equal")
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0, pad=5)
            axes.locator_params(nbins=5)
        scale = figure.colorbar(filled, ax=grid.ravel().tolist(), shrink=0.9, aspect=26)
        scale.set_label(label, parse_math=False)
        scale.outline.set_visible(False)
        scale.set_ticks(levels[::2], labels=[f"{level:.3g}" for level in levels[::2]])
        scale.minorticks_off()
        scale.ax.tick_params(length=0, pad=5)
        file = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    where = ", ".join(panel.title for panel in panels if panel.title)
    return svg.standalone(
        file.getvalue(),
        f"{label} over a plane, from {min(known):.3g} to {max(known):.3g}. Panels: {where}.",
    )


def _values(panel: Surface) -> list[float]:
    """Return all values of a panel.

    Raises:
        InputError: They do not fit the coordinates.
    """
    shape = {(len(panel.values), len(row)) for row in panel.values}
    if shape != {(len(panel.y), len(panel.x))}:
        raise InputError(
            f"the surface {panel.title!r} has {sorted(shape)} rows and columns of values and "
            f"{len(panel.y)} by {len(panel.x)} coordinates: expected a value at each"
        )
    return [value for row in panel.values for value in row]


def _drawn(value: float, *, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _levels(low: float, high: float, *, log: bool) -> list[float]:
    """Return the borders of the contours; equal values get a little room."""
    if log:
        low, high = math.log(low), math.log(high)
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    room = 1e-6 * (high - low)  # what lies on the outer borders must be drawn
    low, high = low - room, high + room
    steps = [low + (high - low) * i / _LEVELS for i in range(_LEVELS + 1)]
    return [math.exp(step) for step in steps] if log else steps
