"""One seed of any row run again, and held against the value that a results file has for it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.files import load_json
from regraft.jobs.base import with_sources
from regraft.jobs.pool import default_workers, run_all
from regraft.report import Run, find_runs

from .recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A metric of one run, and the committed one.

    Attributes:
        committed: What the results file has for this seed, or None without a file.
        again: What the run measured now.
    """

    setting: str
    arm: str
    seed: int
    metric: str
    unit: str
    committed: float | None
    again: float

    @property
    def same(self) -> bool:
        """Whether both are equal to the six digits that results are written with.

        Seconds differ every time, so they are never held against each other.
        """
        if self.committed is None or self.unit == "s":
            return True
        return f"{self.committed:.6g}" == f"{self.again:.6g}"

    def __str__(self) -> str:
        """Write the run, the metric, both values and whether they are the same."""
        unit = "%" if self.unit == "%" else f" {self.unit}" if self.unit else ""
        text = f"{self.setting}/{self.arm} seed {self.seed}: {self.metric} {self.again:.6g}{unit}"
        if self.committed is None:
            return text
        text += f", committed {self.committed:.6g}{unit}"
        if self.unit == "s":
            return f"{text}: not compared"
        gap = f"differs by {self.again - self.committed:+.6g}"
        return f"{text}: {'the same' if self.same else gap}"


def only(recipe: Recipe, row: str | None, seed: int | None) -> Recipe:
    """Return a recipe with the jobs of one row and seed alone, and what they need.

    Args:
        recipe: The whole recipe.
        row: `SETTING/ARM`, or None for all.
        seed: A seed, or None for all.

    Raises:
        InputError: The recipe has no such row or seed.
    """
    rows = {f"{job.setting}/{job.arm}": None for job in recipe.jobs}
    if row is not None and row not in rows:
        close = difflib.get_close_matches(row, rows, n=1, cutoff=0.3)
        raise InputError(
            f"--only {row}: {recipe.name} at scale {recipe.scale} has no such SETTING/ARM; "
            f"the nearest is {close[0] if close else next(iter(rows))}"
        )
    jobs = [job for job in recipe.jobs if row in (None, f"{job.setting}/{job.arm}")]
    seeds = sorted({job.runtime.seed for job in jobs})
    if seed is not None and seed not in seeds:
        raise InputError(f"--seed {seed}: expected one of {', '.join(map(str, seeds))}")
    kept = [job for job in jobs if seed in (None, job.runtime.seed)]
    return dataclasses.replace(recipe, jobs=with_sources(kept))


def read_committed(path: Path, name: str) -> dict[str, Any]:
    """Return a results file of a recipe.

    Raises:
        InputError: It cannot be read, or is of something else.
    """
    try:
        data = load_json(path, ours=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    rows = data.get("rows") if isinstance(data, Mapping) else None
    if not isinstance(data, dict) or not isinstance(rows, list) or "scale" not in data:
        raise InputError(f"{path} is no results file of a recipe: expected docs/results/NAME.json")
    if data.get("recipe") != name:
        raise InputError(f"{path} is of the recipe {data.get('recipe')!r}, not of {name!r}")
    return data


def run_again(
    recipe: Recipe,
    row: str | None,
    out: Path,
    *,
    committed: Mapping[str, Any] | None = None,
    workers: int | None = None,
    console: Any = None,
) -> list[Compared]:
    """Run a recipe that `only` cut down, and compare its numbers with the committed ones.

    Args:
        recipe: The jobs to run.
        row: `SETTING/ARM` of what is compared; of the others, which it needs, nothing is.
        out: Folder of the runs; what is finished there is not run again.
        committed: What `read_committed` returned, or None to compare with nothing.
        workers: Runs side by side; by default as many as fit the cores.
        console: A rich console for progress.

    Raises:
        RegraftError: A run failed, or the file holds no value of a seed.
    """
    threads = recipe.jobs[0].runtime.threads
    workers = default_workers(threads) if workers is None else workers
    run_all(recipe.jobs, out, workers=workers, console=console)
    runs = find_runs([job.folder(out) for job in recipe.jobs])
    compared = []
    for run in runs:
        if row in (None, f"{run.setting}/{run.arm}"):
            compared += _compare(run, recipe.metrics, committed)
    if committed is not None and not compared:
        raise InputError("nothing to compare: the rows of the file are of other settings and arms")
    return compared


def _compare(run: Run, metrics: Any, committed: Mapping[str, Any] | None) -> list[Compared]:
    measured = run.result.metrics if run.result is not None else {}
    compared = []
    for metric, unit in metrics:
        if metric not in measured:
            continue
        value = None if committed is None else _value(run, metric, committed)
        if value is None and committed is not None:
            continue
        compared.append(
            Compared(
                setting=run.setting,
                arm=run.arm,
                seed=run.seed,
                metric=metric,
                unit=unit,
                committed=value,
                again=measured[metric],
            )
        )
    return compared


def _value(run: Run, metric: str, committed: Mapping[str, Any]) -> float | None:
    """Return the committed value of a run, None where the file has no such row."""
    for row in committed["rows"]:
        if (row["setting"], row["arm"], row["metric"]) == (run.setting, run.arm, metric):
            value = row.get("values", {}).get(str(run.seed))
            if value is None:
                raise InputError(
                    f"the file has no value of seed {run.seed} for {run.setting}/{run.arm}: it was made "
                    "by an earlier version, or with fewer seeds"
                )
            return value
    return None
