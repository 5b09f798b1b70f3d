"""Lines in panels as SVG text, drawn by matplotlib without touching the user's own style."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from regraft.errors import InputError, MissingExtraError

from . import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# Each has a contrast of at least 3 on white and on near-black, and they stay apart in every common
# kind of colour blindness. The grey comes first: it is the control's.
PALETTE = ("#808891", "#2f80d0", "#dd5c1a", "#0f9b76", "#b2369f", "#00789e")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", ":", "-.")

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "regraft",
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), svg.INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), svg.INK),
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series: points, and where they are known the bounds around each."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes with its title and lines."""

    title: str
    lines: Sequence[Line]


def lines(
    panels: Sequence[Panel],
    *,
    x_label: str,
    y_label: str,
    spread: Literal["band", "bars"] = "band",
    joined: bool = True,
    beside: bool = True,
    log_x: bool = False,
    x_text: Callable[[float], str] | None = None,
    skip: float = 0.0,
    order: Sequence[str] = (),
    columns: int = 2,
    legend: bool = True,
) -> str:
    """Draw lines in panels and return a figure file that reads well in light and in dark.

    Args:
        panels: What to draw; equal labels look equal in every panel.
        x_label: Label of the horizontal axes.
        y_label: Label of the vertical axes.
        spread: Draw the bounds as a band, or as bars with a marker at each point.
        joined: Connect the points of a line; without it they stand alone, as in a trade-off plot.
        beside: Move the bars of joined lines a little to the side, since those at one value would hide
            each other; not for an axis of measured values.
        log_x: Use a logarithmic horizontal axis, with ticks at values that occur.
        x_text: How to write a value of such an axis; by default with three digits.
        skip: This share of the horizontal range, at its start, does not set the vertical one.
        order: Labels in the order that gives them their colours; others follow as first seen.
        columns: Panels in a row, at most.
        legend: Whether to draw the legend.

    Raises:
        InputError: There is nothing to draw, lengths differ, or a log axis would hold 0 or less.
        MissingExtraError: matplotlib is not installed.
    """
    _check(panels, log_x=log_x)
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "drawing a figure") from error

    labels = list(dict.fromkeys([*order, *(line.label for p in panels for line in p.lines)]))
    shown = {line.label for panel in panels for line in panel.lines}
    columns = min(columns, len(panels))
    height = -(-len(panels) // columns)
    # The user's own style must not leak in, and fonts are the browser's affair: what our fallback
    # font lacks is no reason to warn.
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        legend_rows = -(-len(shown) // _legend_columns(shown, columns)) if legend else 0
        figure = Figure(
            figsize=(4.7 * columns, 3.2 * height + 0.25 * legend_rows), layout="constrained"
        )
        FigureCanvasSVG(figure)
        grid = figure.subplots(height, columns, squeeze=False)
        handles: dict[str, Line2D] = {}
        for i, axes in enumerate(grid.flat):
            if i >= len(panels):
                axes.remove()
                continue
            move = beside and joined and spread == "bars"
            _panel(axes, panels[i], labels, handles, spread=spread, joined=joined, beside=move)
            if log_x:
                _log_ticks(axes, panels[i], x_text or "{:.3g}".format)
            if skip:
                _fit(axes, panels[i], skip)
            axes.set_xlabel(x_label, parse_math=False)
            if i % columns == 0:
                axes.set_ylabel(y_label, parse_math=False)
        if legend:
            ordered = [label for label in labels if label in handles]
            drawn = figure.legend(
                [handles[label] for label in ordered],
                # matplotlib hides labels that begin with an underscore; a space stops it.
                [f" {label}" if label.startswith("_") else label for label in ordered],
                loc="outside upper left",
                ncols=_legend_columns(shown, columns),
                frameon=False,
                handlelength=1.8,
                columnspacing=1.6,
            )
            for text in drawn.get_texts():
                text.set_parse_math(False)
        file = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    named = ", ".join(label for label in labels if label in shown)
    where = ", ".join(panel.title for panel in panels if panel.title)
    return svg.standalone(
        file.getvalue(), f"{y_label} against {x_label.lower()} for {named}. Panels: {where}."
    )


def _check(panels: Sequence[Panel], *, log_x: bool) -> None:
    if not any(len(line.x) for panel in panels for line in panel.lines):
        raise InputError("panels hold no points: give at least one line with values")
    for panel in panels:
        for line in panel.lines:
            lengths = {len(line.x)} | {len(part) for part in _series(line)}
            if len(lengths) > 1:
                raise InputError(
                    f"the line {line.label!r} has parts of {sorted(lengths)} values: "
                    "expected as many y, low and high as x"
                )
            if log_x and len(line.x) and min(line.x) <= 0:
                raise InputError(
                    f"the line {line.label!r} has x = {min(line.x)}, and a logarithmic axis "
                    "holds only numbers above 0: leave the point out or draw without log_x"
                )


_BESIDE, _ASIDE = 3.5, 21.0
"""Points between two bars at one value, and at most between the outermost."""


def _panel(
    axes: Axes,
    panel: Panel,
    labels: list[str],
    handles: dict[str, Line2D],
    *,
    spread: str,
    joined: bool,
    beside: bool,
) -> None:
    from matplotlib.ticker import MaxNLocator
    from matplotlib.transforms import ScaledTranslation

    others = len(panel.lines) - 1
    step = min(_BESIDE, _ASIDE / max(others, 1)) if beside else 0.0
    for place, line in enumerate(panel.lines):
        i = labels.index(line.label)
        color = PALETTE[i % len(PALETTE)]
        bars = spread == "bars"
        aside = step * (place - others / 2) / 72
        transform = axes.transData + ScaledTranslation(aside, 0, axes.figure.dpi_scale_trans)
        (drawn,) = axes.plot(
            line.x,
            line.y,
            color=color,
            linestyle=DASHES[i // len(PALETTE) % len(DASHES)] if joined else "none",
            marker=MARKERS[i % len(MARKERS)],
            markersize=5 if bars or not joined else 4,
            markevery=1 if bars or not joined else max(1, len(line.x) // 5),
            zorder=3,
        )
        # Set after the fact: what is added with a transform of its own does not set the limits.
        drawn.set_transform(transform)
        handles[line.label] = drawn
        known = [
            (x, low, high)
            for x, low, high in zip(line.x, _known(line.low), _known(line.high), strict=False)
            if low is not None and high is not None
        ]
        if not known:
            continue
        xs, lows, highs = zip(*known, strict=True)
        if bars:
            axes.vlines(xs, lows, highs, color=color, linewidth=1.2).set_transform(transform)
        else:
            axes.fill_between(xs, lows, highs, color=color, alpha=0.18, linewidth=0)
    axes.set_title(_wrapped(panel.title), loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_alpha(0.35)
    axes.grid(visible=True, axis="y", alpha=0.14, linewidth=0.8)
    axes.tick_params(length=0, pad=5)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=_whole(panel)))
    axes.margins(x=0.03)


def _series(line: Line) -> list[Sequence[float | None]]:
    return [part for part in (line.y, line.low, line.high) if part is not None]


def _known(series: Sequence[float | None] | None) -> Sequence[float | None]:
    return () if series is None else series


def _fit(axes: Axes, panel: Panel, skip: float) -> None:
    """Let the values after the start alone set the vertical range."""
    positions = [x for line in panel.lines for x in line.x]
    if not positions:
        return
    start = min(positions) + skip * (max(positions) - min(positions))
    values = [
        value
        for line in panel.lines
        for series in _series(line)
        for x, value in zip(line.x, series, strict=True)
        if x >= start and value is not None and math.isfinite(value)
    ]
    if not values:
        return
    margin = 0.06 * (max(values) - min(values)) or 1.0
    axes.set_ylim(min(values) - margin, max(values) + margin)


def _whole(panel: Panel) -> bool:
    return all(float(x).is_integer() for line in panel.lines for x in line.x)


def _log_ticks(axes: Axes, panel: Panel, text: Callable[[float], str]) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axes.set_xscale("log")
    if not any(len(line.x) for line in panel.lines):
        return
    values = sorted({x for line in panel.lines for x in line.x})
    apart = max(1.4, (values[-1] / values[0]) ** (1 / 6))
    ticks = [values[0]]
    for value in values[1:]:
        if value >= ticks[-1] * apart:
            ticks.append(value)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([text(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())


def _legend_columns(labels: Iterable[str], columns: int) -> int:
    widest = max(map(len, labels))
    return max(1, int(columns * 50 / (widest + 6)))


def _wrapped(title: str, width: int = 44) -> str:
    """Break a setting's name at its slashes where it is too long for a panel."""
    written = ""
    for part in re.findall(r"[^/]+/?|/", title):
        if written and len(written.rpartition("\n")[2]) + len(part) > width:
            written += "\n"
        written += part
    return written
