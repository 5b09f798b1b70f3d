"""What a recipe is: runs, and how to read their numbers against the paper."""

from __future__ import annotations

import difflib
import importlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from regraft.errors import InputError
from regraft.files import make_folder, write_text
from regraft.jobs.base import Job, with_sources
from regraft.jobs.pool import default_workers, run_all
from regraft.report import (
    Claim,
    Row,
    Run,
    find_runs,
    learning_curves,
    render_page,
    rows,
    write_results,
)
from regraft.report.plots import curve_panels
from regraft.train import command_line

from .notes import read_notes

RECIPES = {
    "adarand": "regraft.recipes.adarand",
    "frozen": "regraft.recipes.frozen",
    "iterand": "regraft.recipes.iterand",
    "merging": "regraft.recipes.merging",
    "metaticket": "regraft.recipes.metaticket",
    "mgr": "regraft.recipes.mgr",
    "pseudo": "regraft.recipes.pseudo",
    "transfer": "regraft.recipes.transfer",
}
"""Recipes by name: modules with a function `recipe(scale, seeds) -> Recipe`."""

SCALES = ("smoke", "cpu", "gpu", "paper")
"""Scales that every recipe has."""
MORE_SCALES = {
    "adarand": ("photographs", "characters"),
    "frozen": ("images",),
    "metaticket": ("rates",),
    "pseudo": ("foreign",),
}
"""Scales of one recipe alone, which `cpu` would take too long with."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the numbers of a finished recipe say.

    Attributes:
        claims: The paper's claims, with what our intervals make of them.
        text: Markdown that is made of the numbers; the recipe's own prose follows it.
        figures: SVG text by name.
    """

    claims: Sequence[Claim]
    text: str
    figures: Mapping[str, str]


class Scale(NamedTuple):
    """The runs of a scale, or some of them, and their seeds.

    Attributes:
        jobs: Makes every job once, at whatever seed.
        seeds: How many seeds each has.
        first: The first of them: later ones are fresh where settings were chosen while looking at some.
    """

    jobs: Callable[[], Sequence[Job]]
    seeds: int
    first: int = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A paper's experiment at one scale.

    Attributes:
        name: Name on the command line.
        scale: One of `SCALES`, or of the recipe's own.
        title: Heading of the report.
        question: What is to be found out, in a paragraph.
        notes: Markdown that follows what the numbers say: how to read them, and what they hide.
        jobs: Every run, controls and sources included.
        read: Reads the finished runs.
        metrics: Key and unit of each metric that is tabulated; runs without one have no row in it.
    """

    name: str
    scale: str
    title: str
    question: str
    notes: str = ""
    jobs: Sequence[Job]
    read: Callable[[list[Run], list[Row]], Findings]
    metrics: Sequence[tuple[str, str]] = (("test_accuracy", "%"),)


def assemble(
    package: str,
    groups: Sequence[Scale],
    scale: str,
    seeds: int | None,
    *,
    title: str,
    read: Callable[[list[Run], list[Row]], Findings],
    metrics: Sequence[tuple[str, str]] = (("test_accuracy", "%"),),
) -> Recipe:
    """Return a recipe at a scale: its jobs at every seed, their sources first, and its notes.

    Args:
        package: The recipe's package, `__package__` of its module, with `notes.md` beside the code.
        groups: Jobs and seeds of the scale, group by group.
        scale: The scale.
        seeds: Seeds of every job, or None for the scale's own number.
        title: Heading of the report; the scale is put behind it.
        read: Reads the finished runs.
        metrics: Key and unit of each metric that is tabulated.
    """
    jobs = []
    for build, own, first in groups:
        for job in build():
            jobs += [job.with_seed(seed) for seed in range(first, first + (seeds or own))]
    notes = read_notes(package)
    return Recipe(
        name=package.rpartition(".")[2],
        scale=scale,
        title=f"{title} ({scale})",
        question=notes["question"],
        notes=notes["reading"],
        jobs=with_sources(jobs),
        read=read,
        metrics=metrics,
    )


@dataclass(frozen=True)
class Outcome:
    """What reproducing a recipe left: the table, what it says, and where the files are."""

    rows: list[Row]
    findings: Findings
    page: Path
    results: list[Path]
    seconds: float


def load_recipe(name: str, scale: str, seeds: int | None = None) -> Recipe:
    """Return a recipe at a scale, with its own number of seeds unless another is given.

    Raises:
        InputError: An unknown recipe or scale, or fewer than one seed.
    """
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"recipe {name!r} is unknown: {hint}known are {', '.join(RECIPES)}")
    scales = (*SCALES, *MORE_SCALES.get(name, ()))
    if scale not in scales:
        raise InputError(f"scale {scale!r} is unknown: expected one of {', '.join(scales)}")
    if seeds is not None and seeds < 1:
        raise InputError(f"seeds={seeds}: expected at least 1")
    return importlib.import_module(RECIPES[name]).recipe(scale, seeds)


def reproduce(
    recipe: Recipe,
    out: Path,
    *,
    workers: int | None = None,
    results: Path | None = None,
    console: Any = None,
) -> Outcome:
    """Run whatever of a recipe is not finished below `out`, then report on it.

    Args:
        recipe: The recipe.
        out: Folder of the runs and of `report.html`.
        workers: Runs side by side; by default as many as fit the cores.
        results: Where to write the committed form of the results as well, or None.
        console: A rich console for progress.

    Raises:
        RegraftError: A run failed, or nothing could be written.
    """
    make_folder(out)
    started = time.monotonic()
    threads = recipe.jobs[0].runtime.threads
    count = default_workers(threads) if workers is None else max(workers, 1)
    finished = all((job.folder(out) / "result.json").exists() for job in recipe.jobs)
    try:
        run_all(recipe.jobs, out, workers=count, console=console)
    finally:
        # Reading again what is finished is no part of what the numbers cost.
        seconds = _spent(out, 0.0 if finished else time.monotonic() - started)
    folders = [job.folder(out) for job in recipe.jobs]
    runs = find_runs(folders)
    # A stretch that was killed wrote down nothing: its finished runs say what they took at least.
    inside = sum(run.result.seconds or 0.0 for run in runs if run.result is not None)
    seconds = max(seconds, round(inside / count, 1))
    table = [row for metric, unit in recipe.metrics for row in rows(runs, metric, unit)]
    findings = recipe.read(runs, table)
    text = "\n\n".join(part for part in (findings.text, recipe.notes) if part)
    facts = {"command": command_line(), "hardware": _hardware(runs), "commit": _commits(runs)}
    page = out / "report.html"
    html = render_page(
        runs,
        title=recipe.title,
        question=recipe.question,
        claims=findings.claims,
        reading=text,
        figures=findings.figures,
        metrics=recipe.metrics,
        **facts,
    )
    write_text(page, html)
    written: list[Path] = []
    if results is not None:
        recorded = curve_panels(runs, key="accuracy", split="validation")
        curves = {"curves": learning_curves(runs)} if recorded else {}
        written = write_results(
            results,
            recipe.name if recipe.scale == "cpu" else f"{recipe.name}_{recipe.scale}",
            title=recipe.title,
            question=recipe.question,
            recipe=recipe.name,
            scale=recipe.scale,
            seconds=seconds,
            rows=table,
            claims=findings.claims,
            figures={**findings.figures, **curves},
            reading=text,
            **facts,
        )
    return Outcome(table, findings, page, written, seconds)


def _spent(out: Path, more: float) -> float:
    """Return the wall-clock seconds of a recipe over all the times it was started, short of kills."""
    file = out / "seconds.txt"
    try:
        before = float(file.read_text())
    except (OSError, ValueError):
        before = 0.0
    write_text(file, f"{before + more:.1f}\n")
    return round(before + more, 1)


def _commits(runs: Sequence[Run]) -> str:
    """Name every commit that runs were made at, in the order of the runs."""
    return ", ".join(dict.fromkeys(str(run.environment.get("commit") or "unknown") for run in runs))


def _hardware(runs: Sequence[Run]) -> str:
    machine = runs[0].environment
    device = machine.get("device")
    cores = machine.get("cores")
    processor = machine.get("processor") or platform.machine()
    where = f"{device}, " if device and device != "cpu" else ""
    return f"{where}{processor}, {cores} cores"
