"""An arm's learning rate, weight and options, chosen on validation images with seeds never reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft.errors import DivergenceError, InputError
from regraft.files import write_json
from regraft.jobs.base import Job
from regraft.train import RunFolder, make_fabric, read_json
from regraft.train.loop import Progress

from .tuned_task import TunedTask, Tuning, tune, tuning_config

FILE = "choice.json"


@dataclass(frozen=True, kw_only=True)
class SelectJob(Job):
    """Every trial of a grid at every selection seed; the best mean validation accuracy wins.

    Then, stage by stage, variants of the best so far: so what matters less (AdaRand's rate for its
    means) is chosen after what matters more, without every combination.

    Of equal ones the lower mean validation loss wins, then the earlier in the grid. One that
    diverges at any seed is out. The folder holds `choice.json` with all trials.

    Attributes:
        setting: Name of the setting that the choice is for, below `selection/`.
        arm: The method's name in tables.
        task: Data and network; test images are not looked at.
        grid: What is tried, all of one method.
        then: Stages after the grid. A variant has factors of `lr` and `weight`, and `options` of its own.
        seeds: Selection seeds, disjoint from those reported.
    """

    task: TunedTask
    grid: tuple[Tuning, ...]
    then: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    seeds: tuple[int, ...] = (1001, 1002)

    def __post_init__(self) -> None:
        # One choice for all seeds that are reported: it is known, and its folder named, by its first.
        if self.seeds:
            runtime = replace(self.runtime, seed=self.seeds[0])
            object.__setattr__(self, "runtime", runtime)
            object.__setattr__(self, "task", self.task.with_seed(self.seeds[0]))

    @property
    def sources(self) -> Sequence[Job]:
        """The source networks of the selection seeds."""
        tasks = (self.task.with_seed(seed) for seed in self.seeds)
        return tuple(task.source for task in tasks if task.source is not None)

    def with_seed(self, seed: int) -> SelectJob:
        """Return the same choice: it has seeds of its own."""
        return self

    def chosen(self, root: Path) -> dict[str, Any]:
        """Return `lr`, `weight` and `options` of the finished choice.

        Raises:
            InputError: It is not finished.
        """
        selection = read_json(self.folder(root) / FILE)
        if selection is None:
            raise InputError(
                f"{self.folder(root) / FILE} is missing: {self.arm} needs its learning rate and "
                "weight chosen first"
            )
        return selection["chosen"]

    def check(self) -> None:
        """See `Job.check`."""
        super().check()
        if not self.grid or not self.seeds:
            raise InputError("grid or seeds is empty: expected something to choose from")

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Try everything; see `Job.work`.

        Raises:
            DivergenceError: Every pair diverged.
        """
        fabric = make_fabric(self.runtime)
        folder.truncate_metrics(0)
        trials: list[dict[str, Any]] = []
        seconds, best = 0.0, {}
        for stage in (None, *self.then):
            tunings = (
                self.grid if stage is None else [_varied(self.grid[0], best, v) for v in stage]
            )
            for tuning in tunings:
                at = len(trials)
                runs = [self._trial(at, tuning, s, root, fabric, progress) for s in self.seeds]
                seconds += sum(f["seconds"] for f in runs)
                trials.append(_averaged(tuning, runs))
            usable = [t for t in trials if "diverged" not in t]
            if not usable:
                raise DivergenceError(
                    f"every trial of {self.arm} in {self.setting} diverged "
                    f"({trials[-1]['diverged']}): give lower learning rates"
                )
            best = max(usable, key=lambda t: (t["validation_accuracy"], -t["validation_loss"]))
        chosen = {key: best[key] for key in ("lr", "weight", "options")}
        if folder.writes:
            write_json(folder.path / FILE, {"chosen": chosen, "trials": trials})
        metrics = {"trials": len(trials) * len(self.seeds), "lr": best["lr"]}
        metrics |= {k: best[k] for k in ("validation_accuracy", "validation_loss")}
        for key in ("lr", "weight"):
            if best[key] is not None:
                tried = [t[key] for t in trials]
                metrics |= {key: best[key], f"least_{key}": min(tried), f"most_{key}": max(tried)}
        return {"metrics": metrics, "seconds": round(seconds, 3)}

    def _trial(
        self,
        number: int,
        tuning: Tuning,
        seed: int,
        root: Path,
        fabric: Any,
        progress: Progress | None,
    ) -> dict[str, Any]:
        runtime = replace(self.runtime, seed=seed)
        with RunFolder(
            self.folder(root) / "trials" / f"{number:02d}" / f"seed{seed}",
            config={**self.config(), "tuning": tuning_config(tuning)},
            setting=self.setting,
            arm=self.arm,
            seed=seed,
        ) as folder:
            result = folder.result
            if result is None:
                try:
                    result = tune(
                        self.task.with_seed(seed),
                        tuning,
                        runtime=runtime,
                        root=root,
                        folder=folder,
                        fabric=fabric,
                        part="validation",
                        progress=progress,
                    )
                except DivergenceError as error:
                    result = {"metrics": {}, "seconds": 0.0, "diverged": str(error)}
                folder.finish(result)
            # What a trial learned is in its result; weights would fill the disk.
            (folder.path / "checkpoint.safetensors").unlink(missing_ok=True)
        return result


def _varied(first: Tuning, best: Mapping[str, Any], variant: Mapping[str, Any]) -> Tuning:
    """Return the best trial so far with factors of its rate and weight, and other options."""
    lr, weight = best["lr"] * variant.get("lr", 1.0), best["weight"]
    if weight is not None:
        weight = float(f"{weight * variant.get('weight', 1.0):.3g}")
    options = {**best["options"], **variant.get("options", {})}
    return replace(first, lr=float(f"{lr:.3g}"), weight=weight, options=options)


def _averaged(tuning: Tuning, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a trial's means over the seeds, or why it is out."""
    trial = tuning_config(tuning)
    del trial["method"]
    for result in runs:
        if "diverged" in result:
            return {**trial, "diverged": result["diverged"]}
    for key in ("validation_accuracy", "validation_loss"):
        values = [result["metrics"][key] for result in runs]
        trial[key] = sum(values) / len(values)
    return trial
