"""Choose the weights of the recipe `pseudo` on images that it does not report, with seeds that it does not report.

    python benchmarks/choose_pseudo.py coarse_to_fine_mnist conv_small --data-root DATA    # minutes on one core

Every arm has as many weights to choose from. Prints the mean accuracy of each on 4,000 images of the target's
training set, the best of each arm first. The test set is not looked at.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from rich.console import Console

from regraft.jobs.base import with_sources
from regraft.jobs.pool import run_all
from regraft.recipes.pseudo.recipe import ArmWeights, arms, small, small_nets, small_tasks

SEEDS = (11, 12, 13)
GRIDS = {
    "logits": ("logit_matching", (0.03, 0.1, 0.3, 1.0)),
    "soft": ("soft_targets", (0.3, 0.5, 0.8, 1.0)),
    "pseudo": ("pp_pssl", (0.1, 0.3, 1.0, 3.0)),
    "target": ("ssl_target", (0.1, 0.3, 1.0, 3.0)),
}
"""By weight: the arm that has it, and what there is to choose from."""


def main() -> None:
    """Run all candidates and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("net")
    parser.add_argument("--data-root")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/choose_pseudo"))
    args = parser.parse_args()
    effort = small()
    task = next(t for t in small_tasks(effort.runtime) if t.name == args.task)
    net = next(n for n in small_nets() if n.name == args.net)
    judge = replace(task.target, size=4000)
    names, jobs = [], []
    for field, (arm, grid) in GRIDS.items():
        for value in grid:
            weights = ArmWeights(**{field: value})
            (job,) = arms(
                replace(task, test=judge), task.sizes[0], net, effort, (arm,), weights=weights
            )
            names.append((field, value))
            jobs.append(replace(job, setting=f"{job.setting}/{field}={value:g}"))
    seeded = [[job.with_seed(s) for s in SEEDS] for job in jobs]
    if args.data_root:
        seeded = [[j.with_data_root(args.data_root) for j in group] for group in seeded]
    flat = [job for group in seeded for job in group]
    run_all(with_sources(flat), args.out, workers=args.workers, console=Console())
    scores = {
        name: fmean(job.run(args.out)["metrics"]["test_accuracy"] for job in group)
        for name, group in zip(names, seeded, strict=True)
    }
    for field in GRIDS:
        mine = {v: s for (f, v), s in scores.items() if f == field}
        order = sorted(mine, key=lambda v: -mine[v])
        print(field, ", ".join(f"{v:g}: {mine[v]:.2f}" for v in order))


if __name__ == "__main__":
    main()
