"""What the numbers of the recipe `iterand` say: at equal width, at equal accuracy, at equal bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from regraft.config import TicketMethod
from regraft.recipes.claims import above, below, over_settings
from regraft.recipes.compare import gap, plain, signed, verdict
from regraft.recipes.recipe import Findings
from regraft.report import Claim, Estimate, Line, Panel, Row, Run, efficiency, estimate, lines
from regraft.report.wording import size

SEARCHES: tuple[TicketMethod, ...] = ("edge_popup", "iterand")

Measure = Callable[[Run], float]
Curves = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of edge-popup and of IteRand: the logarithm of what a run costs, and its accuracy."""


def read(runs: list[Run], rows: list[Row]) -> Findings:
    """Return claims, text and figures of a finished recipe."""
    iterand = [r for r in rows if r.arm == "iterand"]
    if len(iterand) == 1:
        text = "One width and a few seeds prove nothing: the scale cpu asks the question."
        return Findings(claims=[], text=text, figures={})
    claims: list[Claim] = []
    sentences: list[str] = []
    for family in dict.fromkeys(_family(r.setting) for r in iterand):
        widths = {r.setting: _last(r.setting) for r in iterand if _family(r.setting) == family}
        paper = f"IteRand beats edge-popup at equal width ({family})"
        if len(widths) > 1:
            claims += over_settings(runs, widths, *_PAIR, paper, over="widths")
        claims += over_settings(runs, widths, *_PAIR, paper, over="widths", each=True)
        gaps = {name: gap(runs, s, *_PAIR) for s, name in widths.items()}
        gains = ", ".join(f"{g.mean:+.2f} at {name}" for name, g in gaps.items() if g is not None)
        sentences.append(f"{family}: IteRand minus edge-popup, same seed, in points: {gains}.")
        for more, text in (_width(runs, family, widths), _bytes(runs, family, widths)):
            claims += more
            sentences += text
    drawn = [r for r in rows if r.arm in ("dense", *SEARCHES)]
    figures = {
        "width": efficiency(drawn, "width"),
        "stored_bytes": efficiency(drawn, "stored_bytes"),
        "equal-bytes": _bytes_figure(rows),
    }
    return Findings(claims=claims, text="\n\n".join(sentences), figures=figures)


_PAIR = ("iterand", "edge_popup")


def _width(runs: list[Run], family: str, settings: dict[str, str]) -> tuple[list[Claim], list[str]]:
    ratios = equal_accuracy(runs, family, width_of)
    if not ratios:
        return [], []
    ratio = estimate(ratios)
    claim = Claim(
        paper=f"IteRand may be narrower for equal accuracy ({family})",
        held=below(1.0)(ratio),
        evidence=list(settings),
        note=f"It needs {plain(ratio)} of the width of edge-popup.",
    )
    sentence = (
        f"For the accuracy of edge-popup, IteRand needs {plain(ratio)} of its width (geometric mean "
        f"over the accuracies both reach, n = {ratio.n} seeds)."
    )
    return [claim], [sentence]


def _bytes(runs: list[Run], family: str, settings: dict[str, str]) -> tuple[list[Claim], list[str]]:
    gains = equal_cost(runs, family, bytes_of)
    ratios = equal_accuracy(runs, family, bytes_of)
    if not gains:
        return [], []
    gain = estimate(gains)
    ratio: Estimate | None = estimate(ratios) if ratios else None
    needed = f" For equal accuracy its files take {plain(ratio)} of the bytes." if ratio else ""
    claim = Claim(
        paper=f"Our question: IteRand is more accurate at equal bytes of the file ({family})",
        held=above()(gain),
        evidence=list(settings),
        note=(
            f"{signed(gain)} points over the sizes that both arms have, {verdict(gain)}, n = "
            f"{gain.n} seeds.{needed}"
        ),
    )
    return [claim], [f"{family}, at equal bytes: {claim.note}"]


def width_of(run: Run) -> float:
    """Return the width factor that a setting names."""
    return float(_last(run.setting).removeprefix("width="))


def bytes_of(run: Run) -> float:
    """Return the bytes of a run's file."""
    return float((run.result.stored_bytes if run.result else None) or "nan")


def equal_accuracy(runs: Sequence[Run], family: str, cost: Measure) -> list[float]:
    """Return, per seed, what IteRand costs over what edge-popup costs (geometric mean).

    Both curves accuracy(log cost) of a seed are made monotone (running maximum) and interpolated
    linearly; the ratio is averaged in log cost over the accuracies that both curves reach.
    """
    ratios = []
    for (xe, ae), (xi, ai) in _curves(runs, family, cost):
        ae, ai = np.maximum.accumulate(ae), np.maximum.accumulate(ai)
        low, high = max(ae[0], ai[0]), min(ae[-1], ai[-1])
        if high <= low:
            continue
        at = np.linspace(low, high, 101)
        gaps = np.interp(at, ai, xi) - np.interp(at, ae, xe)
        ratios.append(float(np.exp(gaps.mean())))
    return ratios


def equal_cost(runs: Sequence[Run], family: str, cost: Measure) -> list[float]:
    """Return, per seed, the accuracy of IteRand minus that of edge-popup at equal cost, in points.

    Both curves accuracy(log cost) of a seed are interpolated linearly; the difference is averaged
    in log cost over the costs that both curves have.
    """
    gains = []
    for (xe, ae), (xi, ai) in _curves(runs, family, cost):
        low, high = max(xe[0], xi[0]), min(xe[-1], xi[-1])
        if high <= low:
            continue
        at = np.linspace(low, high, 101)
        gains.append(float((np.interp(at, xi, ai) - np.interp(at, xe, ae)).mean()))
    return gains


def _curves(runs: Sequence[Run], family: str, cost: Measure) -> list[Curves]:
    """Return for each seed with two points or more of each search both curves, by rising cost."""
    points: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for run in runs:
        if run.result is not None and _family(run.setting) == family and run.arm in SEARCHES:
            point = (float(np.log(cost(run))), run.result.metrics["test_accuracy"])
            points.setdefault((run.arm, run.seed), []).append(point)
    curves = []
    for seed in sorted({seed for _, seed in points}):
        pair = [sorted(points.get((arm, seed), [])) for arm in SEARCHES]
        if min(map(len, pair)) > 1:
            one, two = ((np.array(p)[:, 0], np.array(p)[:, 1]) for p in pair)
            curves.append((one, two))
    return curves


def _bytes_figure(rows: list[Row]) -> str:
    """Draw accuracy against bytes, a line for each search and weight law."""
    panels: dict[str, list[Line]] = {}
    for family in dict.fromkeys(_family(r.setting) for r in rows if r.arm == "iterand"):
        network, _, law = family.rpartition("/")
        for arm in SEARCHES:
            own = [r for r in rows if r.arm == arm and _family(r.setting) == family]
            own = sorted(own, key=lambda r: r.stored_bytes or 0)
            line = Line(
                label=f"{arm}, {law}",
                x=[float(r.stored_bytes or 0) for r in own],
                y=[r.mean for r in own],
                low=[r.low for r in own],
                high=[r.high for r in own],
            )
            panels.setdefault(network, []).append(line)
    return lines(
        [Panel(title=network, lines=drawn) for network, drawn in panels.items()],
        x_label="Bytes of the file",
        y_label="Test accuracy (%)",
        spread="bars",
        log_x=True,
        x_text=size,
    )


def _family(setting: str) -> str:
    return setting.rpartition("/")[0]


def _last(setting: str) -> str:
    return setting.rpartition("/")[2]
