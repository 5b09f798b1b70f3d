"""Choose the weights of the recipe `mgr` on images that it does not report, with seeds that it does not report.

    python benchmarks/choose_mgr.py --data-root DATA    # five minutes on one core

Prints the mean accuracy of every weight on 4,000 images of the second half of the training set, the best of
each loss first. The test set is not looked at.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from regraft.config import DataConfig, SetConfig
from regraft.recipes.mgr.arms import LossWeights, make
from regraft.recipes.mgr.recipe import target
from weights import Candidate, compare

SEEDS = (101, 102)
GRIDS = {
    "pcr": ("pcr", (0.3, 1.0, 3.0, 10.0, 30.0)),
    "ce": ("gda", (0.03, 0.1, 0.3, 1.0, 3.0)),
    "real": ("real_pcr", (0.3, 1.0, 3.0, 10.0)),
    "strong_ce": ("gda_strong", (0.3, 1.0, 3.0)),
    "head": ("gda_head", (0.03, 0.1, 0.3, 1.0)),
    "self_training": ("gda_ssl", (0.1, 0.3, 1.0)),
    "real_strong": ("real_strong", (0.3, 1.0, 3.0)),
}
"""By weight: the arm that has it alone, and what there is to choose from."""


def main() -> None:
    """Run all candidates and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--size", type=int, default=50)
    parser.add_argument("--generator", type=int, help="train it on so many other images")
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, default=Path("runs/choose_mgr"))
    args = parser.parse_args()
    judge = SetConfig(
        data=DataConfig(name=args.data, validation=0.0), part="second_half", size=4000
    )
    more: dict[str, Any] = {}
    grids = GRIDS
    if args.generator is not None:
        grids = {field: GRIDS[field] for field in ("pcr", "ce")}
        data = DataConfig(name=args.data, validation=0.0)
        more = {
            "generator": SetConfig(data=data, part="second_half", size=args.generator),
            "generator_steps": 2000,
            "setting": f"{args.data}/{args.size}/generator={args.generator}",
        }
    like = target(args.data, args.size, test=judge, **more)
    candidates: list[Candidate] = []
    for field, (arm, grid) in grids.items():
        for value in grid:
            (job,) = make(like, LossWeights(**{field: value}), (arm,))
            named = replace(job, setting=f"{like.setting}/{field}={value:g}")
            candidates.append((field, value, named))
    compare(candidates, SEEDS, args.out, data_root=args.data_root)


if __name__ == "__main__":
    main()
