"""How the numbers of the recipe `adarand` are drawn: accuracy by size, features along training."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.jobs.finetune.analysis import QUANTITIES, SPLIT
from regraft.recipes.compare import gap, line_of
from regraft.recipes.curves import history_lines
from regraft.report import Panel, Row, Run, efficiency, lines

_DRAWN = ("scratch", "plain", "adarand", "randreg_class", "randreg_source", "feature_norm")
_WORDS = {
    "feature_norm": "Feature norm",
    "entropy": "Entropy estimate (nats)",
    "mutual_information": "Mutual information estimate (nats)",
}


def figures(
    runs: list[Run], rows: list[Row], pairs: Mapping[str, Mapping[float, str]]
) -> dict[str, str]:
    """Return SVG text by name."""
    several = {s for sizes in pairs.values() if len(sizes) > 1 for s in sizes.values()}
    curves = [
        r for r in rows if r.metric == "test_accuracy" and r.arm in _DRAWN and r.setting in several
    ]
    made = {}
    if curves:
        along = "share" if "/share=" in curves[0].setting else "shots"
        size = "Of the training images (share)" if along == "share" else "Images a class"
        made["data-reduction"] = efficiency(curves, along, along=along, x_label=size)
        made["gain-over-plain"] = lines(
            _gains(runs, pairs),
            x_label=size,
            y_label="Test accuracy over plain (points)",
            spread="bars",
            log_x=True,
            x_text="{:g}".format,
        )
    for quantity in QUANTITIES:
        panels = [
            Panel(title=setting, lines=over)
            for sizes in pairs.values()
            for setting in sizes.values()
            if (over := history_lines(runs, setting, split=SPLIT, x="step", y=quantity))
        ]
        if panels:
            name = quantity.replace("_", "-")
            made[name] = lines(panels, x_label="Step", y_label=_WORDS[quantity])
    return made


def _gains(runs: list[Run], pairs: Mapping[str, Mapping[float, str]]) -> list[Panel]:
    panels = []
    for pair, sizes in pairs.items():
        gaps = {a: {n: gap(runs, s, a, "plain") for n, s in sizes.items()} for a in _DRAWN[2:]}
        known = {a: {n: g for n, g in of.items() if g is not None} for a, of in gaps.items()}
        drawn = [line_of(arm, of) for arm, of in known.items() if len(of) > 1]
        if drawn:
            panels.append(Panel(title=pair, lines=drawn))
    return panels
