"""Choose the outer learning rates of the Meta-ticket recipe on classes that are not tested on.

A fifth of Omniglot's background characters is held out; every method gets the same rates, steps and
three seeds (11 to 13, none of which is reported), and the rate with the highest mean accuracy on 200
episodes of the held-out characters wins. A choice at the edge of its grid is marked.

    python benchmarks/choose_metaticket.py [--steps 400] [--width 1]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from regraft.config import FewshotMethod, OuterConfig
from regraft.recipes.metaticket.recipe import job

RATES: dict[FewshotMethod, tuple[float, ...]] = {
    "maml": (3e-4, 1e-3, 3e-3, 1e-2),
    "anil": (3e-4, 1e-3, 3e-3, 1e-2),
    "boil": (3e-4, 1e-3, 3e-3, 1e-2),
    "meta-ticket": (3.0, 10.0, 30.0),
}


def main() -> None:
    """Print a table of mean accuracies and the choices."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--shots", type=int, default=1)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    for method, rates in RATES.items():
        means = {}
        for rate in rates:
            plain = job(method, width=options.width, shots=options.shots, steps=options.steps)
            plain = replace(
                plain,
                setting=f"rate={rate:g}",
                tests=(),
                test_tasks=200,
                curve_points=1,
                outer=OuterConfig(steps=options.steps, lr=rate),
            )
            scores = [
                plain.with_seed(seed).run(root)["metrics"]["test_accuracy"] for seed in (11, 12, 13)
            ]
            means[rate] = sum(scores) / len(scores)
            print(
                f"{method} {rate:g}: {means[rate]:.1f} {[round(s, 1) for s in scores]}", flush=True
            )
        best = max(means, key=lambda r: means[r])
        edge = " (edge of the grid)" if best in (rates[0], rates[-1]) else ""
        print(f"{method}: {best:g}{edge}", flush=True)


if __name__ == "__main__":
    main()
