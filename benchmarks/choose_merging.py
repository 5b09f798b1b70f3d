"""Choose the settings of the recipe `merging` on validation images, with a seed it does not report.

    python benchmarks/choose_merging.py --data-root DATA                  # every kind of arm
    python benchmarks/choose_merging.py --data-root DATA --only ste_random

Prints the mean validation accuracy of every candidate on MNIST with Fashion-MNIST at the scale
`cpu`, the best of each kind first. The test images are measured by the runs but never read here.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from regraft.jobs.base import with_sources
from regraft.jobs.merge.job import MergeJob
from regraft.jobs.pool import run_all
from regraft.recipes.merging.recipe import pairs

SEED = 11
RATES = {
    "ste_full": (0.05, 0.1, 0.2, 0.5),
    "ste": (0.25, 0.5, 1.0, 2.0),
    "scratch": (0.03, 0.1, 0.3),
}


def candidates(
    only: str | None, rates: list[float] | None, epochs: int | None
) -> Iterator[tuple[str, str, MergeJob]]:
    """Yield (arm, what is tried, job)."""
    pair = pairs("cpu")["mnist+fashion_mnist/mlp"]
    for job in pair.jobs():
        kind = job.arm if job.arm == "ste_full" else job.arm.partition("_")[0]
        if kind not in RATES or job.merge.repair != "none" or only not in (None, job.arm):
            continue
        base = job.merge.optim
        for lr in rates or RATES[kind]:
            optim = replace(base, lr=lr, epochs=epochs or base.epochs)
            tried = f"lr={lr:g}, {optim.epochs} epochs"
            merge = replace(job.merge, optim=optim, points=3)
            setting = f"choose/lr={lr:g}/epochs={optim.epochs}"
            yield job.arm, tried, replace(job, setting=setting, control=None, merge=merge)


def main() -> None:
    """Run the candidates and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one arm, e.g. ste_full")
    parser.add_argument("--lr", type=float, nargs="+", help="other learning rates than the table's")
    parser.add_argument("--epochs", type=int, help="another length than the recipe's")
    parser.add_argument("--data-root", help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/choose-merging"))
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    tried = [
        (arm, text, job.with_seed(SEED))
        for arm, text, job in candidates(asked.only, asked.lr, asked.epochs)
    ]
    if asked.data_root is not None:
        tried = [(arm, text, job.with_data_root(asked.data_root)) for arm, text, job in tried]
    runs = with_sources([job for *_, job in tried])
    run_all(runs, asked.out, workers=asked.workers, console=Console(stderr=True))
    found: dict[str, list[tuple[float, str, float]]] = {}
    for arm, text, job in tried:
        result = json.loads((job.folder(asked.out) / "result.json").read_text())
        score = result["metrics"]["validation_accuracy"]
        found.setdefault(arm, []).append((score, text, result["seconds"]))
    for arm, scores in found.items():
        print(arm)
        for score, text, seconds in sorted(scores, reverse=True):
            print(f"  {score:5.1f}%  {text}  ({seconds:.0f} s)")


if __name__ == "__main__":
    main()
