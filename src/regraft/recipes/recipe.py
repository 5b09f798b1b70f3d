"""What a recipe is: runs, and how to read their numbers against the paper."""

from __future__ import annotations

import difflib
import importlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.files import make_folder, write_text
from regraft.jobs.base import Job
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
from regraft.train import command_line

RECIPES = {
    "adarand": "regraft.recipes.adarand",
    "frozen": "regraft.recipes.frozen",
    "iterand": "regraft.recipes.iterand",
    "merging": "regraft.recipes.merging",
    "transfer": "regraft.recipes.transfer",
}
"""Recipes by name: modules with a function `recipe(scale, seeds) -> Recipe`."""

SCALES = ("smoke", "cpu", "gpu", "paper")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the numbers of a finished recipe say.

    Attributes:
        claims: The paper's claims, held or not.
        text: Markdown for a reader.
        figures: SVG text by name.
    """

    claims: Sequence[Claim]
    text: str
    figures: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A paper's experiment at one scale.

    Attributes:
        name: Name on the command line.
        scale: One of `SCALES`.
        title: Heading of the report.
        asked: The question, in a paragraph.
        jobs: Every run, controls and sources included.
        read: Reads the finished runs.
        metrics: Key and unit of each metric that is tabulated; runs without one have no row in it.
    """

    name: str
    scale: str
    title: str
    asked: str
    jobs: Sequence[Job]
    read: Callable[[list[Run], list[Row]], Reading]
    metrics: Sequence[tuple[str, str]] = (("test_accuracy", "%"),)


@dataclass(frozen=True)
class Outcome:
    """What reproducing a recipe left: the table, the reading, and where the files are."""

    rows: list[Row]
    reading: Reading
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
    if scale not in SCALES:
        raise InputError(f"scale {scale!r} is unknown: expected one of {', '.join(SCALES)}")
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
    finished = all((job.folder(out) / "result.json").exists() for job in recipe.jobs)
    try:
        run_all(
            recipe.jobs,
            out,
            workers=default_workers(threads) if workers is None else workers,
            console=console,
        )
    finally:
        # Reading again what is finished is no part of what the numbers cost.
        seconds = _spent(out, 0.0 if finished else time.monotonic() - started)
    folders = [job.folder(out) for job in recipe.jobs]
    runs = find_runs(folders)
    table = [row for metric, unit in recipe.metrics for row in rows(runs, metric, unit)]
    reading = recipe.read(runs, table)
    facts = {
        "command": command_line(),
        "hardware": _hardware(runs),
        "commit": _commits(runs),
    }
    page = out / "report.html"
    html = render_page(
        runs,
        title=recipe.title,
        question=recipe.asked,
        claims=reading.claims,
        reading=reading.text,
        figures=reading.figures,
        metrics=recipe.metrics,
        **facts,
    )
    write_text(page, html)
    written: list[Path] = []
    if results is not None:
        curves = {"curves": learning_curves(runs)}
        written = write_results(
            results,
            recipe.name if recipe.scale == "cpu" else f"{recipe.name}_{recipe.scale}",
            title=recipe.title,
            asked=recipe.asked,
            recipe=recipe.name,
            scale=recipe.scale,
            seconds=seconds,
            rows=table,
            claims=reading.claims,
            figures={**reading.figures, **curves},
            reading=reading.text,
            **facts,
        )
    return Outcome(table, reading, page, written, seconds)


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
    found = runs[0].environment
    device = found.get("device")
    cores = found.get("cores")
    processor = found.get("processor") or platform.machine()
    where = f"{device}, " if device and device != "cpu" else ""
    return f"{where}{processor}, {cores} cores"
