"""Choose the settings of the recipe `frozen` on validation, with seeds that it does not report.

    python benchmarks/choose_frozen.py cora/full/gcn --data-root DATA    # ten minutes on one core
    python benchmarks/choose_frozen.py cora/full/gcn --only narrow

Prints the mean validation accuracy of every candidate, the best of each kind first. The test set is
evaluated by the runs but never read here.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from rich.console import Console

from regraft.jobs.pool import run_all
from regraft.jobs.train import TrainJob
from regraft.recipes.frozen.arms import CONTROLS, Settings, Task, pareto, twins
from regraft.recipes.frozen.recipe import CORA_CHOSEN, cora_task, image_task

SEEDS = (11, 12)
KINDS = {
    "train": (("dense",), (0.003, 0.01, 0.03), (0.0, 0.5)),
    "search": (("frozen", "frozen_coded", "dense_source"), (0.003, 0.01, 0.03), (0.5,)),
    "tiny": (("dense_same_bytes",), (0.01, 0.03, 0.1), (0.0, 0.5)),
    "narrow": (("dense_4bit_same_bytes",), (0.003, 0.01, 0.03, 0.1), (0.0, 0.5)),
    "sparse": (("sparse_same_bytes",), (0.01, 0.03, 0.1), (0.0, 0.5)),
    "coded": (("dense_4bit_coded_same_bytes",), (0.001, 0.003, 0.01, 0.03, 0.1), (0.0, 0.5)),
    "binary": (("binary_same_bytes",), (0.001, 0.003, 0.01, 0.03, 0.1), (0.0, 0.5)),
    "ternary": (("ternary_same_bytes",), (0.001, 0.003, 0.01, 0.03, 0.1), (0.0, 0.5)),
    "pruned": (("pruned_4bit_coded_same_bytes",), (0.001, 0.003, 0.01, 0.03, 0.1), (0.0, 0.5)),
}
"""By kind: the arms that are averaged, learning rates, dropouts."""


IMAGE_RATES, IMAGE_SHARE = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4), 0.5
"""Of the convolutions, which have no dropout, at one frozen share."""


def candidates(task: Task, kind: str) -> Iterable[tuple[str, list[TrainJob]]]:
    """Yield the name and the jobs of every candidate of a kind."""
    arms, rates, dropouts = KINDS[kind]
    graph = bool(task.shape.get("graph"))
    for rate in rates if graph else IMAGE_RATES:
        for dropout in dropouts if graph else (None,):
            changed = with_settings(task, kind, rate, dropout)
            name = f"lr={rate:g}" + ("" if dropout is None else f",dropout={dropout:g}")
            changed = replace(changed, setting=f"{task.setting}/{kind}/{name}")
            jobs = twins(changed) if graph else pareto(changed, (IMAGE_SHARE,), 0.5)
            found = {job.arm: job for job in jobs}
            wanted = [found[arm] for arm in arms if arm in found]
            wanted = [job.source for job in wanted if job.source is not None] + wanted
            yield name, wanted


def with_settings(task: Task, kind: str, rate: float, dropout: float | None) -> Task:
    options = {} if dropout is None else {"dropout": dropout}
    if kind not in CONTROLS:
        model = replace(task.model, options={**task.model.options, **options})
        return replace(task, model=model, **{kind: replace(getattr(task, kind), lr=rate)})
    old = task.controls.get(kind, Settings(task.train))
    new = Settings(replace(old.optim, lr=rate), {**old.options, **options})
    return replace(task, controls={**task.controls, kind: new})


def validation(job: TrainJob, root: Path) -> float:
    result = json.loads((job.folder(root) / "result.json").read_text())
    return result["metrics"]["validation_accuracy"]


def compared(task: Task, kind: str) -> list[tuple[str, list[TrainJob]]]:
    """Return the candidates of a kind, none where the task has no job of its arms."""
    arms = KINDS[kind][0]
    return [c for c in candidates(task, kind) if any(job.arm in arms for job in c[1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    tasks = {t.setting: t for t in (*map(cora_task, CORA_CHOSEN), image_task())}
    parser.add_argument("setting", choices=tasks)
    parser.add_argument("--only", choices=KINDS, nargs="*", default=list(KINDS))
    parser.add_argument("--data-root")
    parser.add_argument("--out", type=Path, default=Path("runs/choose-frozen"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for kind in options.only:
        found = []
        several = compared(tasks[options.setting], kind)
        if not several:
            print(f"{options.setting} {kind:8} has no job of {', '.join(KINDS[kind][0])}: skipped")
        for name, jobs in several:
            if options.data_root:
                jobs = [job.with_data_root(options.data_root) for job in jobs]
            seeded = [job.with_seed(seed) for seed in SEEDS for job in jobs]
            run_all(seeded, options.out, console=Console(quiet=True))
            counted = [j for j in seeded if j.arm in KINDS[kind][0]]
            found.append((fmean(validation(j, options.out) for j in counted), name))
        for mean, name in sorted(found, reverse=True):
            print(f"{options.setting} {kind:8} {name:22} {mean:6.2f}", flush=True)


if __name__ == "__main__":
    main()
