"""Weights of a recipe's arms, held against each other on images and seeds that it does not report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from regraft.jobs.base import with_sources
from regraft.jobs.pool import run_all

Candidate = tuple[str, float, Any]
"""The weight that is chosen, its value, and the job that has it."""


def compare(
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    out: Path,
    *,
    data_root: str | None = None,
    workers: int = 1,
) -> None:
    """Run all candidates at all seeds and print their mean accuracies, the best of each weight first."""
    seeded = [[job.with_seed(seed) for seed in seeds] for _, _, job in candidates]
    if data_root:
        seeded = [[job.with_data_root(data_root) for job in group] for group in seeded]
    flat = [job for group in seeded for job in group]
    run_all(with_sources(flat), out, workers=workers, console=Console())
    means: dict[str, dict[float, float]] = {}
    for (field, value, _), group in zip(candidates, seeded, strict=True):
        scores = [job.run(out)["metrics"]["test_accuracy"] for job in group]
        means.setdefault(field, {})[value] = fmean(scores)
    for field, mine in means.items():
        best_first = sorted(mine.items(), key=lambda pair: -pair[1])
        print(field, ", ".join(f"{value:g}: {mean:.2f}" for value, mean in best_first))
