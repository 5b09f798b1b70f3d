"""One self-contained HTML page about any set of runs: no script, no request, light and dark."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from . import figure, wording
from .claims import Claim
from .document import Figure, Kind, Section, Table, render
from .plots import curve_panels, efficiency, position, without
from .runs import Run
from .table import Row, by_metric, rows, to_table

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
    question: str = "",
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
        question: What the runs are to answer, in a sentence or two.
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
    runs = list(runs)
    finished = [run for run in runs if run.finished]
    tabulated = [row for key, unit in metrics for row in rows(runs, key, unit)] if finished else []
    # Colours follow the first column of the tables, so that the grey falls to the control.
    arms = list(dict.fromkeys(run.arm for run in sorted(runs, key=lambda r: r.control is not None)))
    unfinished = [run for run in runs if not run.finished]
    sections = [
        Section(title="Claims", claims=claims),
        Section(
            title="Results",
            text=[] if tabulated else ["No run has finished yet."],
            tables=[to_table(group) for group in by_metric(tabulated)],
            notes=[_MEANS] if tabulated else [],
        ),
        Section(title="Reading", text=[p for p in re.split(r"\n\s*\n", reading.strip()) if p]),
        *_curves(runs, arms, curve),
        *_efficiencies(tabulated, arms),
        *(
            Section(title=heading, figures=[Figure(title=heading, content=text)], wide=True)
            for heading, text in (figures or {}).items()
        ),
        Section(
            title="Unfinished runs",
            text=[_UNFINISHED] if unfinished else [],
            tables=[_listed(unfinished, None)] if unfinished else [],
        ),
        Section(
            title="How it was run",
            commands=[command] if command else [],
            facts=_facts(runs, {"date": date, "hardware": hardware, "commit": commit}),
        ),
        Section(title="Every run", folded=f"{len(runs)} runs", tables=[_listed(runs, metrics)]),
    ]
    always = ("Results", "How it was run", "Every run")
    shown = [s for s in sections if s.title in always or s.claims or s.text or s.figures]
    return render(shown, title=title, lede=question, summary=_summary(runs, finished))


_MEANS = (
    "Means over n seeds with 95% t-intervals. Differences are paired by seed, over the seeds that an arm "
    "shares with its control, and bold where their interval excludes zero. Costs are means over seeds. "
    "One seed gives no interval (–)."
)
_UNFINISHED = (
    "These have no result and count in no mean above. The command that started one carries it on."
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


def _curves(runs: list[Run], arms: list[str], curve: tuple[str, str, str]) -> list[Section]:
    key, split, unit = curve
    panels = curve_panels(runs, key=key, split=split)
    if not panels:
        return []
    labels = {line.label for panel in panels for line in panel.lines}
    drawn = [
        figure.lines(
            [panel],
            x_label="Epoch",
            y_label=wording.heading(f"{split} {key}", unit),
            skip=0.25,
            order=arms,
            legend=False,
        )
        for panel in panels
    ]
    note = (
        "Mean over seeds; bands reach from the lowest seed to the highest. The first quarter of "
        "training does not set the vertical scale."
    )
    return [_drawn("Learning curves", drawn, arms, labels, note)]


def _drawn(
    title: str, drawn: Sequence[str], arms: list[str], labels: set[str], note: str
) -> Section:
    return Section(
        title=title,
        figures=[Figure(title=title, content=text) for text in drawn],
        legend=[(_swatch(i), arm) for i, arm in enumerate(arms) if arm in labels],
        notes=[note],
    )


def _efficiencies(tabulated: list[Row], arms: list[str]) -> list[Section]:
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
    title = f"{wording.phrase(group[0].metric)} against {against}"
    note = "Means with 95% intervals; where bars would meet they are set slightly apart."
    return [_drawn(title, drawn, arms, {row.arm for row in group}, note)]


def _swatch(i: int) -> str:
    color = figure.PALETTE[i % len(figure.PALETTE)]
    dashes = _DASHES[figure.DASHES[i // len(figure.PALETTE) % len(figure.DASHES)]]
    return (
        f'<svg width="28" height="12" aria-hidden="true" fill="{color}"><path d="M1 6h26" '
        f'stroke="{color}" stroke-width="1.8" stroke-dasharray="{dashes}"/>'
        f"{_SHAPES[figure.MARKERS[i % len(figure.MARKERS)]]}</svg>"
    )


def _listed(runs: Sequence[Run], metrics: Sequence[tuple[str, str]] | None) -> Table:
    """Return a table of runs: with their last step, or with the metrics of the finished ones."""
    rows = []
    for run in runs:
        row = [run.arm, run.setting, str(run.seed)]
        if metrics is None:
            row += [str(run.history[-1]["step"]) if run.history else wording.NONE]
        else:
            values = run.result.metrics if run.result else {}
            row += [wording.number(values.get(k), 2 if unit == "%" else 4) for k, unit in metrics]
            row.append(wording.duration(run.result.seconds) if run.result else "unfinished")
        rows.append([*row, run.folder.as_posix()])
        if metrics is not None:
            rows[-1].append(run.digest or wording.NONE)
    if metrics is None:
        numbers, last = ["Last step"], ["Folder"]
    else:
        numbers, last = (
            [wording.heading(*metric) for metric in metrics] + ["Time"],
            ["Folder", "Config"],
        )
    kinds: list[Kind] = ["text", "text", *["number"] * (1 + len(numbers)), *["code"] * len(last)]
    return Table(headings=["Arm", "Setting", "Seed", *numbers, *last], rows=rows, kinds=kinds)


def _facts(runs: list[Run], known: Mapping[str, str]) -> dict[str, str]:
    """Return what was said about the runs, then what they recorded, all its values listed."""
    facts = {key: value for key, value in known.items() if value}
    recorded: dict[str, dict[str, None]] = {}
    for run in runs:
        for key, value in run.environment.items():
            recorded.setdefault(key, {})[str(value)] = None
    for key, values in recorded.items():
        facts.setdefault(key, ", ".join(values))
    return {wording.phrase(key): value for key, value in facts.items()}
