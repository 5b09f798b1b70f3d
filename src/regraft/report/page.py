"""One self-contained HTML page about any set of runs: no script, no request, light and dark."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from regraft.errors import MissingExtraError

from . import figure, svg, wording
from .plots import curve_panels, efficiency, position, without
from .results import Claim
from .runs import Run
from .table import Row, by_metric, costs, only_control, rows

_SHAPES = {
    "o": '<circle cx="14" cy="6" r="3.2"/>',
    "s": '<path d="M11 3h6v6h-6z"/>',
    "^": '<path d="M14 2.2l3.6 6.6h-7.2z"/>',
    "D": '<path d="M14 1.8L18.2 6 14 10.2 9.8 6z"/>',
    "v": '<path d="M14 9.8l3.6-6.6h-7.2z"/>',
    "P": '<path d="M12.7 2.5h2.6v2.2h2.2v2.6h-2.2v2.2h-2.6V7.3h-2.2V4.7h2.2z"/>',
}
_DASHES = {"-": "", "--": "6 3", ":": "2 2", "-.": "6 2 2 2"}


def render_page(
    runs: Sequence[Run],
    *,
    title: str,
    asked: str = "",
    command: str = "",
    hardware: str = "",
    commit: str = "",
    date: str = "",
    claims: Sequence[Claim] = (),
    reading: str = "",
    metrics: Sequence[tuple[str, str]] = (("test_accuracy", "%"),),
    curve: tuple[str, str, str] = ("accuracy", "validation", "%"),
    figures: Mapping[str, str] | None = None,
) -> str:
    """Return an HTML page: claims, tables, curves, unfinished runs, environment, every run.

    Equal arguments give equal bytes; nothing is taken from the clock or from this machine.

    Args:
        runs: The runs, finished or not, whose order is that of tables and figures.
        title: Heading of the page.
        asked: The question, in a sentence or two.
        command: What started the runs.
        hardware: What they ran on, in words; without it what the runs recorded.
        commit: Commit of the code; without it what the runs recorded.
        date: When, as text.
        claims: What was claimed, and whether it held.
        reading: What the numbers say; an empty line parts paragraphs.
        metrics: Key and unit of each metric to tabulate.
        curve: Key, split and unit of the learning curves; left out where no run recorded it.
        figures: Further figures of `lines`, by heading.

    Raises:
        InputError: There is no run, or no finished run measured a metric.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "writing a report page") from error

    runs = list(runs)
    finished = [run for run in runs if run.finished]
    tabulated = [row for key, unit in metrics for row in rows(runs, key, unit)] if finished else []
    # Colours follow the first column of the tables, so that the grey falls to the control.
    arms = list(dict.fromkeys(run.arm for run in sorted(runs, key=lambda r: r.control is not None)))
    groups = [*_curves(runs, arms, curve), *_efficiencies(tabulated, arms)]
    for heading, text in (figures or {}).items():
        groups.append({"title": heading, "svgs": [text], "wide": True})
    for i, group in enumerate(groups):
        group["svgs"] = [
            Markup(svg.inline(text, f"f{i}-{j}-")) for j, text in enumerate(group["svgs"])
        ]
        group["legend"] = [
            {"label": arm, "swatch": Markup(_swatch(arms.index(arm)))}
            for arm in group.get("legend", ())
        ]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    here = files("regraft.report")
    template = environment.from_string(here.joinpath("page.html.jinja").read_text("utf-8"))
    return template.render(
        css=Markup(here.joinpath("page.css").read_text("utf-8").strip()),
        title=title,
        asked=asked,
        summary=_summary(runs, finished),
        claims=claims,
        tables=[_table(group) for group in by_metric(tabulated)],
        reading=[part for part in re.split(r"\n\s*\n", reading.strip()) if part],
        figures=[{"note": "", "wide": False, **group} for group in groups],
        unfinished=[_listed(run, metrics) for run in runs if not run.finished],
        command=command,
        facts=_facts(runs, {"date": date, "hardware": hardware, "commit": commit}),
        runs=[_listed(run, metrics) for run in runs],
        run_headings=[wording.labelled(*metric) for metric in metrics],
    )


def _summary(runs: list[Run], finished: list[Run]) -> list[str]:
    parts = [_count(len(runs), "run")]
    if len(finished) < len(runs):
        parts += [f"{len(finished)} finished", f"{len(runs) - len(finished)} unfinished"]
    parts.append(_count(len({run.setting for run in runs}), "setting"))
    parts.append(_count(len({run.arm for run in runs}), "arm"))
    parts.append(_count(len({run.seed for run in runs}), "seed"))
    return parts


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _table(group: list[Row]) -> dict[str, Any]:
    digits = wording.decimals(group[0].unit, [row.mean for row in group])
    control = only_control(group)
    show_control = control is None and any(row.control for row in group)
    further = costs(group)
    groups: dict[str, list[dict[str, Any]]] = {}
    for i, row in enumerate(group):
        low, high = row.paired_low, row.paired_high
        groups.setdefault(row.setting, []).append(
            {
                "arm": row.arm,
                "control": row.control or wording.NONE,
                "mean": wording.number(row.mean, digits),
                "interval": wording.interval(row.low, row.high, digits),
                "difference": wording.number(row.paired_difference, digits, signed=True),
                "paired_interval": wording.interval(low, high, digits),
                "excludes_zero": low is not None and high is not None and (low > 0 or high < 0),
                "n": row.n,
                "costs": [texts[i] for _, texts in further],
            }
        )
    return {
        "heading": wording.labelled(group[0].metric, group[0].unit),
        "difference": "Difference" if control is None else f"Against {control}",
        "show_control": show_control,
        "costs": [heading for heading, _ in further],
        "width": 6 + show_control + len(further),
        "groups": list(groups.items()),
    }


def _curves(runs: list[Run], arms: list[str], curve: tuple[str, str, str]) -> list[dict[str, Any]]:
    key, split, unit = curve
    panels = curve_panels(runs, key=key, split=split)
    if not panels:
        return []
    drawn = {line.label for panel in panels for line in panel.lines}
    return [
        {
            "title": "Learning curves",
            "svgs": [
                figure.lines(
                    [panel],
                    x_label="Epoch",
                    y_label=wording.labelled(f"{split} {key}", unit),
                    skip=0.25,
                    order=arms,
                    legend=False,
                )
                for panel in panels
            ],
            "legend": [arm for arm in arms if arm in drawn],
            "note": "Mean over seeds; bands reach from the lowest seed to the highest. "
            "The first quarter of training does not set the vertical scale.",
        }
    ]


def _efficiencies(tabulated: list[Row], arms: list[str]) -> list[dict[str, Any]]:
    """Draw the first metric against whatever number its settings vary, and against bytes."""
    first = by_metric(tabulated)[:1]
    settings = dict.fromkeys(row.setting for group in first for row in group)
    names = dict.fromkeys(n for s in settings for n in re.findall(r"(?:^|/)([^/=]+)=\d[^/]*", s))
    varied = [
        name
        for name in names
        if len({without(setting, name) for setting in settings}) < len(settings)
    ]
    if not varied:
        return []
    group, along = first[0], varied[0]
    measures = [along]
    if all(row.stored_bytes for row in group):
        measures.append("stored_bytes")
    drawn = [
        efficiency(
            [row for row in group if without(row.setting, along) == panel],
            x,
            along=along,
            # A sparsity, say, may be 0, which a logarithmic axis cannot hold.
            log_x=all((position(row, x) or 0) > 0 for row in group),
            order=arms,
            legend=False,
        )
        for panel in dict.fromkeys(without(row.setting, along) for row in group)
        for x in measures
        if any(
            position(row, x) is not None for row in group if without(row.setting, along) == panel
        )
    ]
    against = " and ".join(name.replace("_", " ") for name in measures)
    return [
        {
            "title": f"{wording.phrase(group[0].metric)} against {against}",
            "svgs": drawn,
            "legend": [arm for arm in arms if arm in {row.arm for row in group}],
            "note": "Means with 95% intervals; where bars would meet they are set slightly apart.",
        }
    ]


def _swatch(i: int) -> str:
    color = figure.PALETTE[i % len(figure.PALETTE)]
    dashes = _DASHES[figure.DASHES[i // len(figure.PALETTE) % len(figure.DASHES)]]
    return (
        f'<svg width="28" height="12" aria-hidden="true" fill="{color}"><path d="M1 6h26" '
        f'stroke="{color}" stroke-width="1.8" stroke-dasharray="{dashes}"/>'
        f"{_SHAPES[figure.MARKERS[i % len(figure.MARKERS)]]}</svg>"
    )


def _listed(run: Run, metrics: Sequence[tuple[str, str]]) -> dict[str, Any]:
    values = run.result.metrics if run.result else {}
    return {
        "arm": run.arm,
        "setting": run.setting,
        "seed": run.seed,
        "step": run.history[-1]["step"] if run.history else wording.NONE,
        "metric_values": [
            wording.number(values.get(key), 2 if unit == "%" else 4) for key, unit in metrics
        ],
        "time": wording.duration(run.result.seconds) if run.result else "unfinished",
        "folder": run.folder.as_posix(),
        "digest": run.digest or wording.NONE,
    }


def _facts(runs: list[Run], given: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what was said about the runs, then what they recorded, all its values listed."""
    facts = {key: value for key, value in given.items() if value}
    recorded: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in run.environment.items():
            recorded.setdefault(key, {})[str(value)] = None
    for key, values in recorded.items():
        facts.setdefault(key, ", ".join(values))
    return [(wording.phrase(key), value) for key, value in facts.items()]
