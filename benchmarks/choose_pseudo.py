"""Choose the weights of the recipe `pseudo` on images that it does not report, with seeds that it does not report.

    python benchmarks/choose_pseudo.py coarse_to_fine_mnist/conv_small --data-root DATA    # minutes on one core

Every arm has as many weights to choose from. Prints the mean accuracy of each on 4,000 images of the target's
training set, the best of each arm first. The test set is not looked at.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from regraft.recipes.pseudo.arms import ArmWeights, arms
from regraft.recipes.pseudo.recipe import settings
from weights import Candidate, compare

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
    rows = [row for scale in ("cpu", "foreign") for row in settings(scale)]
    parts = {f"{p[0].name}/{p[2].name}": p for row in rows for p in row.parts()}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("setting", choices=parts)
    parser.add_argument("--data-root")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/choose_pseudo"))
    args = parser.parse_args()
    task, size, net, effort = parts[args.setting]
    judged = replace(task, test=replace(task.target, size=4000))
    candidates: list[Candidate] = []
    for field, (arm, grid) in GRIDS.items():
        for value in grid:
            weights = ArmWeights(**{field: value})
            (job,) = arms(judged, size, net, effort, (arm,), weights=weights)
            named = replace(job, setting=f"{job.setting}/{field}={value:g}")
            candidates.append((field, value, named))
    compare(candidates, SEEDS, args.out, data_root=args.data_root, workers=args.workers)


if __name__ == "__main__":
    main()
