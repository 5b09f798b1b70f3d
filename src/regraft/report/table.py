"""Runs gathered into rows, one for each arm of each setting, and rows written as tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from regraft.errors import InputError

from . import wording
from .document import Cell, Kind, Table
from .runs import Result, Run
from .stats import estimate, paired_difference

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_COSTS = (
    ("seconds", "Time", wording.duration),
    ("stored_bytes", "Stored", wording.size),
    ("trainable_parameters", "Trainable", wording.quantity),
    ("peak_memory_bytes", "Peak memory", wording.size),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm of one setting over its seeds, against its control where it has one.

    `values` are the figures by seed; `low` and `high` bound a 95% interval over them, the paired
    ones a 95% interval of the difference over the seeds that arm and control share. Costs are means
    over the seeds.
    """

    setting: str
    arm: str
    control: str | None = None
    metric: str
    unit: str
    n: int
    mean: float
    low: float | None = None
    high: float | None = None
    values: Mapping[int, float] = field(default_factory=dict)
    paired_difference: float | None = None
    paired_low: float | None = None
    paired_high: float | None = None
    seconds: float | None = None
    stored_bytes: int | None = None
    trainable_parameters: int | None = None
    peak_memory_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; a control's own row has no `control`."""
        data = dataclasses.asdict(self)
        data["values"] = {str(seed): self.values[seed] for seed in sorted(self.values)}
        if self.control is None:
            del data["control"]
        return data


def rows(runs: Iterable[Run], metric: str = "test_accuracy", unit: str = "%") -> list[Row]:
    """Gather finished runs into rows: settings as first seen, in each the controls first.

    Unfinished runs do not count, and an arm that never measured `metric` gets no row.

    Raises:
        InputError: Nothing measured `metric`, two runs share setting, arm and seed, or the runs
            of one arm disagree about their control or about having measured the metric.
    """
    runs = list(runs)
    settings: dict[str, dict[str, dict[int, Run]]] = {}
    for run in runs:
        if not run.finished:
            continue
        seeds = settings.setdefault(run.setting, {}).setdefault(run.arm, {})
        if run.seed in seeds:
            raise InputError(
                f"{seeds[run.seed].folder} and {run.folder} are both seed {run.seed} of "
                f"{run.arm} in {run.setting}: report them separately, or remove one"
            )
        seeds[run.seed] = run
    gathered = []
    for arms in settings.values():
        values = {arm: _values(seeds, metric) for arm, seeds in arms.items()}
        of_setting = [
            _row(list(seeds.values()), values, metric, unit)
            for arm, seeds in arms.items()
            if values[arm]
        ]
        gathered += sorted(of_setting, key=lambda row: row.control is not None)
    if not gathered:
        known = sorted({key for run in runs if run.result for key in run.result.metrics})
        raise InputError(
            f"metric is {metric!r}, which no finished run measured: "
            + (f"choose one of {', '.join(known)}" if known else "no run has finished yet")
        )
    return gathered


def usual_metric(runs: Iterable[Run]) -> str:
    """Return `test_accuracy`, or `validation_accuracy` of runs of which none had test images."""
    known = {key for run in runs if run.result for key in run.result.metrics}
    alone = "validation_accuracy" in known and "test_accuracy" not in known
    return "validation_accuracy" if alone else "test_accuracy"


def by_metric(rows: Iterable[Row]) -> list[list[Row]]:
    """Split rows into one list for each metric, in the order in which they come."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.metric, row.unit), []).append(row)
    return list(groups.values())


def costs(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """Return (heading, a text for each row) for every cost that some row knows."""
    return [
        (heading, [write(getattr(row, key)) for row in rows])
        for key, heading, write in _COSTS
        if any(getattr(row, key) is not None for row in rows)
    ]


def only_control(rows: Iterable[Row]) -> str | None:
    """Return the control where all rows that have one have the same."""
    controls = {row.control for row in rows if row.control is not None}
    return controls.pop() if len(controls) == 1 else None


def to_markdown(rows: Sequence[Row]) -> str:
    """Write rows as Markdown tables, one for each metric."""
    tables = []
    for group in by_metric(rows):
        further = costs(group)
        heading = wording.heading(group[0].metric, group[0].unit)
        names = ["Setting", "Arm", "Control"]
        numbers = [heading, "Difference", "n", *(name for name, _ in further)]
        lines = [
            [row.setting, row.arm, row.control or wording.NONE, *texts, *(c[i] for _, c in further)]
            for i, (row, texts) in enumerate(zip(group, _numbers(group), strict=True))
        ]
        kinds: list[Kind] = [*["text"] * len(names), *["number"] * len(numbers)]
        tables.append(Table(headings=[*names, *numbers], rows=lines, kinds=kinds).to_markdown())
    return "\n".join(tables)


def to_table(group: Sequence[Row]) -> Table:
    """Return the rows of one metric as a table of a page, grouped by setting."""
    digits = wording.decimals(group[0].unit, [row.mean for row in group])
    control = only_control(group)
    shown = ["Control"] if control is None and any(row.control for row in group) else []
    further = costs(group)
    lines: list[list[str | Cell]] = []
    for i, row in enumerate(group):
        low, high = row.paired_low, row.paired_high
        clear = low is not None and high is not None and (low > 0 or high < 0)
        difference = wording.number(row.paired_difference, digits, signed=True)
        lines.append(
            [
                row.arm,
                *((row.control or wording.NONE) for _ in shown),
                wording.number(row.mean, digits),
                wording.interval(row.low, row.high, digits),
                Cell(difference, "clear" if clear else ""),
                wording.interval(low, high, digits),
                str(row.n),
                *(texts[i] for _, texts in further),
            ]
        )
    against = "Difference" if control is None else f"Against {control}"
    spread = "95% interval"
    costed: list[Kind] = ["number"] * (1 + len(further))
    named: list[Kind] = ["text"] * (1 + len(shown))
    return Table(
        caption=wording.heading(group[0].metric, group[0].unit),
        headings=[
            "Arm",
            *shown,
            "Mean",
            spread,
            against,
            spread,
            "n",
            *(name for name, _ in further),
        ],
        rows=lines,
        kinds=[*named, "number", "interval", "number", "interval", *costed],
        groups=[row.setting for row in group],
    )


def to_rich(rows: Sequence[Row]) -> list[RichTable]:
    """Return tables for the terminal, one for each setting and metric, that fit 80 columns."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    tables = []
    for group in by_metric(rows):
        control = only_control(group)
        heading = wording.heading(group[0].metric, group[0].unit)
        difference = "Difference" if control is None else f"Against {control}"
        further = [cost for cost in costs(group) if cost[0] in {"Time", "Stored"}]
        numbers = _numbers(group)
        for setting in dict.fromkeys(row.setting for row in group):
            # Text objects throughout: rich would read "[red]" in a plain name as a colour.
            table = RichTable(
                title=Text(setting), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False
            )
            # A name in two lines is no name; the numbers wrap first.
            widest = _longest([row.arm for row in group])
            table.add_column("Arm", overflow="fold", min_width=widest)
            if control is None:
                widest = _longest([row.control or "" for row in group])
                table.add_column("Control", overflow="fold", min_width=widest)
            for name in (heading, difference, "n", *(name for name, _ in further)):
                table.add_column(Text(name), justify="right", overflow="fold")
            for i, row in enumerate(group):
                if row.setting == setting:
                    names = [row.arm] + ([row.control or wording.NONE] if control is None else [])
                    shown = [*names, *numbers[i], *(texts[i] for _, texts in further)]
                    table.add_row(*map(Text, shown))
            tables.append(table)
    return tables


_NAME = 24
"""Characters of a name that are not broken over lines however narrow a terminal is."""


def _longest(names: Sequence[str]) -> int:
    return max((len(name) for name in names if len(name) <= _NAME), default=1)


def _values(seeds: dict[int, Run], metric: str) -> dict[int, float]:
    values, missing = {}, None
    for seed, run in seeds.items():
        if run.result is not None and metric in run.result.metrics:
            values[seed] = run.result.metrics[metric]
        else:
            missing = run
    if values and missing is not None:
        raise InputError(
            f"{missing.folder} has no {metric}, which other seeds of {missing.arm} have: "
            "finish it with the same version, or leave it out"
        )
    return values


def _row(runs: list[Run], values: dict[str, dict[int, float]], metric: str, unit: str) -> Row:
    setting, arm = runs[0].setting, runs[0].arm
    controls = {run.control for run in runs}
    if len(controls) > 1:
        named = ", ".join(sorted(str(control) for control in controls))
        raise InputError(
            f"the runs of {arm} in {setting} name different controls ({named}): "
            "report them separately"
        )
    control = controls.pop()
    own = estimate(values[arm].values())
    other = values.get(control, {}) if control is not None else {}
    paired = paired_difference(values[arm], other) if values[arm].keys() & other.keys() else None
    results = [run.result for run in runs if run.result is not None]
    seconds = _mean(results, "seconds")
    return Row(
        setting=setting,
        arm=arm,
        control=control,
        metric=metric,
        unit=unit,
        n=own.n,
        mean=own.mean,
        low=_within(own.low, metric, unit),
        high=_within(own.high, metric, unit),
        values=dict(sorted(values[arm].items())),
        paired_difference=paired.mean if paired else None,
        paired_low=paired.low if paired else None,
        paired_high=paired.high if paired else None,
        seconds=seconds,
        **{key: _whole(_mean(results, key)) for key, _, _ in _COSTS if key != "seconds"},
    )


def _within(end: float | None, metric: str, unit: str) -> float | None:
    """Return an end of an interval; that of an accuracy lies between 0 and 100%."""
    if end is None or unit != "%" or not metric.endswith("accuracy"):
        return end
    return min(max(end, 0.0), 100.0)


def _mean(results: list[Result], key: str) -> float | None:
    known = [value for result in results if (value := getattr(result, key)) is not None]
    return estimate(known).mean if known else None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _numbers(rows: Sequence[Row]) -> list[list[str]]:
    """Return for each row its mean, its difference and its n in words."""
    digits = wording.decimals(rows[0].unit, [row.mean for row in rows])
    return [
        [
            wording.with_interval(row.mean, row.low, row.high, digits),
            wording.with_interval(
                row.paired_difference, row.paired_low, row.paired_high, digits, signed=True
            ),
            str(row.n),
        ]
        for row in rows
    ]
