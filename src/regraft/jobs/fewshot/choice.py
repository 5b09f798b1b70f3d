"""A method's outer learning rate, chosen on held-out classes with seeds that are never reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.errors import DivergenceError, InputError
from regraft.jobs.base import Job
from regraft.train import RunFolder, read_json
from regraft.train.loop import Progress


@dataclass(frozen=True, kw_only=True)
class RateChoice(Job):
    """Every rate at every selection seed; the best mean accuracy wins, of equal ones the lower rate.

    A rate that diverges at any seed is out. The folder holds a folder for each trial.

    Attributes:
        trials: The runs that are compared, at every rate and seed: they have no `tests`.
    """

    keeps_checkpoint = False

    trials: tuple[Job, ...]

    @property
    def sources(self) -> Sequence[Job]:
        """Nothing: the trials are run here."""
        return ()

    def with_seed(self, seed: int) -> RateChoice:
        """Return the same choice: it has seeds of its own."""
        return self

    def chosen(self, root: Path) -> float:
        """Return the rate of the finished choice.

        Raises:
            InputError: It is not finished.
        """
        result = read_json(self.folder(root) / "result.json")
        if result is None:
            raise InputError(
                f"{self.folder(root)} is not finished: {self.arm} needs its rate first"
            )
        return result["metrics"]["lr"]

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Run every trial; see `Job.work`.

        Raises:
            DivergenceError: Every rate diverged.
        """
        levels: dict[float, list[float]] = {}
        seconds = 0.0
        for trial in self.trials:
            rate: float = trial.outer.lr  # pyrefly: ignore
            path = folder.path / "trials" / f"{rate:g}" / f"seed{trial.runtime.seed}"
            try:
                result = trial.run_in(path, root=root, progress=progress)
            except DivergenceError:
                levels.setdefault(rate, []).append(float("-inf"))
                continue
            levels.setdefault(rate, []).append(result["metrics"]["test_accuracy"])
            seconds += result["seconds"]
            for name in ("checkpoint.safetensors", "model.safetensors", "model.ticket"):
                (path / name).unlink(missing_ok=True)
        means = {rate: sum(each) / len(each) for rate, each in sorted(levels.items())}
        best = max(means, key=lambda rate: means[rate])
        if means[best] == float("-inf"):
            raise DivergenceError(
                f"every rate of {self.arm} in {self.setting} diverged: give lower ones"
            )
        edge = best in (min(means), max(means))
        metrics = {"lr": best, "edge": float(edge), "trials": len(self.trials)}
        metrics |= {f"held_out/{r:g}": m for r, m in means.items() if m > float("-inf")}
        return {"metrics": metrics, "seconds": seconds}
