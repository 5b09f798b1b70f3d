"""The page of a condensed set: its images, what made them, what networks learn from them."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any


def page(
    condensed: Any,
    picture: bytes,
    *,
    title: str,
    facts: Mapping[str, str],
    losses: Sequence[float],
    scores: Sequence[Mapping[str, Any]] = (),
    note: str = "",
) -> str:
    """Return one self-contained HTML page: no script, no request, light and dark.

    Args:
        condensed: The `CondensedSet`.
        picture: Its contact sheet as a PNG file, a row for each class.
        title: Heading of the page.
        facts: Settings and figures, by name.
        losses: Matching loss of every restart.
        scores: Rows of `summary`, if networks were trained.
        note: How they were trained.
    """
    outside = ((condensed.images < 0) | (condensed.images > 1)).float().mean().item()
    style = files("regraft.report").joinpath("page.css").read_text("utf-8").strip()
    image = base64.b64encode(picture).decode("ascii")
    listed = ", ".join(condensed.classes)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{style}\n{_STYLE}</style></head><body>",
        f"<header><h1>{escape(title)}</h1>",
        f'<p class="summary">{condensed.num_classes} classes · {condensed.per_class} images of each'
        f" · {len(condensed)} in all</p></header>",
        '<section aria-labelledby="images"><h2 id="images">Images</h2>',
        f'<p class="quiet">A row for each class, from above: {escape(listed)}. {outside:.0%} of the '
        "values lie outside [0, 1] and are cut off here, not in the file.</p>",
        f'<img class="sheet" alt="The condensed images, a row for each class" '
        f'src="data:image/png;base64,{image}"></section>',
        *(_scores(scores, note) if scores else ()),
        *(_curve(losses) if len(losses) > 1 else ()),
        '<section aria-labelledby="settings"><h2 id="settings">Settings</h2><dl>',
        *(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()),
        "</dl></section></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _scores(rows: Sequence[Mapping[str, Any]], note: str) -> list[str]:
    from regraft.report.wording import interval, number

    lines = []
    for row in rows:
        against = number(row.get("difference"), 1, signed=True)
        spread = interval(row.get("paired_low"), row.get("paired_high"), 1)
        lines.append(
            f'<tr><th scope="row">{escape(_NAMES.get(row["arm"], row["arm"]))}</th>'
            f'<td class="number">{number(row["mean"], 1)}</td>'
            f'<td class="interval">{interval(row["low"], row["high"], 1)}</td>'
            f'<td class="number">{against}</td><td class="interval">{spread}</td>'
            f'<td class="number">{row["n"]}</td></tr>'
        )
    return [
        '<section aria-labelledby="scores"><h2 id="scores">What networks learn from them</h2>',
        '<div class="scroll" tabindex="0"><table><thead><tr><th scope="col">Trained on</th>',
        '<th scope="col" class="number">Accuracy (%)</th><th scope="col" class="interval">95%</th>',
        '<th scope="col" class="number">Against random</th>',
        '<th scope="col" class="interval">95%</th><th scope="col" class="number">Seeds</th></tr>',
        "</thead><tbody>",
        *lines,
        f'</tbody></table></div><p class="quiet">{escape(note)}</p></section>',
    ]


def _curve(losses: Sequence[float]) -> list[str]:
    """Draw the mean loss of up to a hundred groups of restarts."""
    groups = min(100, len(losses))
    edges = [round(i * len(losses) / groups) for i in range(groups + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    top = max(means) or 1.0
    width, height = 640, 160
    step = width / (groups - 1)
    line = " ".join(f"{i * step:.1f},{height * (1 - m / top):.1f}" for i, m in enumerate(means))
    return [
        '<section aria-labelledby="loss"><h2 id="loss">Matching loss</h2>',
        f'<svg class="curve" viewBox="-4 -4 {width + 8} {height + 8}" role="img" aria-label="Matching '
        f'loss from {means[0]:.3g} to {means[-1]:.3g} over {len(losses)} restarts">',
        f'<path d="M0 0V{height}H{width}" fill="none" stroke="var(--rule)"/>',
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>',
        f'<p class="quiet">For one class and step: {means[0]:.3g} at first, {means[-1]:.3g} at the '
        f"end of {len(losses)} restarts; the axis starts at 0 and ends at {top:.3g}.</p></section>",
    ]


_NAMES = {
    "condensed": "condensed images",
    "random": "as many random images",
    "all": "all training images",
}
_STYLE = (
    ".sheet { display: block; max-width: 100%; height: auto; image-rendering: pixelated; }\n"
    ".curve { display: block; width: 100%; max-width: 46rem; height: auto; }\n"
)
