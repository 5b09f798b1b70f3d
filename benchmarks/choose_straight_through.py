"""Choose the defaults of `regraft merge --match ste` on validation images, with a seed of its own.

    python benchmarks/choose_straight_through.py --data-root DATA
    python benchmarks/choose_straight_through.py --data-root DATA --rates 0.3 --steps 200 600 1200

Merges MNIST with Fashion-MNIST: two perceptrons, and two ResNets with BatchNorm. A candidate is a
learning rate and a number of steps; what is told of it is the lowest loss of the merged network on
the validation images of both sets, which the command measures to choose among its own candidates.
The test images are measured by the command but never read here.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from regraft.cli import main as regraft
from regraft.jobs.pool import run_all
from regraft.jobs.train import TrainJob
from regraft.recipes.merging.recipe import Pair, pairs

SEED = 11
OTHER = 1011
"""Seed of the second network, which must not start where the first does."""


def merged() -> dict[str, Pair]:
    """Return the networks that are merged, by name."""
    rows = pairs("cpu")
    mlp, resnet = rows["mnist+fashion_mnist/mlp"], rows["mnist/resnet8/width=2/same-data"]
    return {"MLP": mlp, "ResNet-8": replace(resnet, b=replace(resnet.b, name=mlp.b.name))}


def parents(pair: Pair, root: str | None) -> list[TrainJob]:
    """Return the trainings of both networks."""
    jobs = [pair.parent(pair.a).with_seed(SEED), pair.parent(pair.b).with_seed(OTHER)]
    return jobs if root is None else [job.with_data_root(root) for job in jobs]


def lowest_loss(pair: Pair, folders: list[Path], out: Path, options: list[str]) -> float:
    """Merge with the command and return the lowest validation loss of its candidates."""
    if not (out / "card.json").exists():
        size = [] if pair.a.image_size is None else ["--image-size", str(pair.a.image_size)]
        words = ["merge", *map(str, folders), "--data", pair.a.name, "--data", pair.b.name, *size]
        words += [*f"--match ste --seed {SEED} --threads 2 --json --out".split(), str(out)]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            code = regraft([*words, *options])
        if code:
            raise SystemExit(code)
    card = json.loads((out / "card.json").read_text("utf-8"))
    return min(score for model in card["match"]["models"] for score in model.get("scores", ()))


def main() -> None:
    """Merge with every candidate and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[600])
    parser.add_argument("--surrogates", nargs="+", default=["full", "random"])
    parser.add_argument("--data-root", help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("runs/choose-straight-through"))
    asked = parser.parse_args()
    torch.set_num_threads(2)
    root = [] if asked.data_root is None else ["--data-root", asked.data_root]
    for name, pair in merged().items():
        jobs = parents(pair, asked.data_root)
        run_all(jobs, asked.out, workers=2, console=Console(stderr=True))
        folders = [job.folder(asked.out) for job in jobs]
        for surrogate in asked.surrogates:
            for steps in asked.steps:
                for lr in asked.rates:
                    out = asked.out / f"{name}-{surrogate}-lr={lr:g}-steps={steps}"
                    options = [
                        "--ste-lr",
                        f"{lr:g}",
                        "--ste-steps",
                        str(steps),
                        "--surrogate",
                        surrogate,
                    ]
                    began = time.perf_counter()
                    loss = lowest_loss(pair, folders, out, [*options, *root])
                    seconds = time.perf_counter() - began
                    print(
                        f"{name}, {surrogate}: lr={lr:g}, {steps} steps: loss {loss:.4f} "
                        f"({seconds:.0f} s)",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
