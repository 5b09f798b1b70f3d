"""Choose the weights of the recipe `mgr` on images that it does not report, with seeds that it does not report.

    python benchmarks/choose_mgr.py SETTING --data-root DATA    # fashion_mnist/50: seven minutes on one core

Prints, for every arm of a setting of the scale `cpu` that has a weight of its own, the mean accuracy of each
value on 4,000 images of the second half of the training set, the best first. The test set is not looked at.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from regraft.config import SetConfig
from regraft.recipes.mgr.arms import LossWeights, make
from regraft.recipes.mgr.recipe import MGRSetting, settings
from weights import Candidate, compare

SEEDS = (101, 102, 103)
GRIDS = {
    "pcr": ("pcr", (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)),
    "ce": ("gda", (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    "real": ("real_pcr", (0.1, 0.3, 1.0, 3.0, 10.0)),
    "strong_ce": ("gda_strong", (0.03, 0.1, 0.3, 1.0, 3.0)),
    "head": ("gda_head", (0.03, 0.1, 0.3, 1.0)),
    "self_training": ("gda_ssl", (0.1, 0.3, 1.0)),
    "real_strong": ("real_strong", (0.3, 1.0, 3.0)),
}
"""By weight: the arm that has it alone, and what there is to choose from."""


def candidates(row: MGRSetting) -> list[Candidate]:
    """Return every value of every weight that an arm of the row has."""
    base = row.base
    judge = SetConfig(data=base.target.data, part="second_half", size=4000)
    like, arms = replace(base, test=judge), row.names()
    found: list[Candidate] = []
    for field, (arm, grid) in GRIDS.items():
        for value in grid if arm in arms else ():
            (job,) = make(like, LossWeights(**{field: value}), (arm,), batch=row.generated)
            named = replace(job, setting=f"{like.setting}/{field}={value:g}")
            found.append((field, value, named))
    return found


def main() -> None:
    """Run all candidates and print them."""
    rows = {row.base.setting: row for row in reversed(settings("cpu"))}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="+", choices=rows)
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, default=Path("runs/choose_mgr"))
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    for name in args.settings:
        print(name)
        more = {"data_root": args.data_root, "workers": args.workers}
        compare(candidates(rows[name]), SEEDS, args.out, **more)


if __name__ == "__main__":
    main()
