"""One fine-tuning of the recipe `adarand`, with the learning rate and weight that were chosen for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from regraft.config import RuntimeConfig, check
from regraft.errors import DivergenceError
from regraft.jobs.base import folder_of, open_folder
from regraft.jobs.train import Job, fingerprint, load_once, runtime_identity
from regraft.train import make_fabric
from regraft.train.loop import Progress

from .tuned_select import SelectJob
from .tuned_task import Task, Tuning, tune, tuning_config, tuning_metrics


@dataclass(frozen=True, kw_only=True)
class TransferJob:
    """Everything that determines one fine-tuning that is reported.

    Attributes:
        setting: What is compared here.
        arm: The method's name in tables.
        control: The arm this one is held against.
        task: Data and network.
        tuning: The method; its learning rate and weight count where there is no `choice`.
        choice: The selection that gives them.
        points: Times that features are described along training.
    """

    setting: str
    arm: str
    control: str | None = None
    task: Task
    tuning: Tuning
    choice: SelectJob | None = None
    points: int = 0
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    @property
    def sources(self) -> Sequence[Job | SelectJob]:
        """The source network, and the selection."""
        return tuple(job for job in (self.task.source, self.choice) if job is not None)

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines the numbers."""
        tuning = tuning_config(self.tuning)
        if self.choice is not None:
            # Learning rate and weight follow from the selection, which is part of the identity.
            tuning.pop("lr"), tuning.pop("weight")
        return {
            "task": self.task.config(),
            "tuning": tuning,
            "choice": None if self.choice is None else self.choice.config(),
            "points": self.points,
            "runtime": runtime_identity(self.runtime),
        }

    def folder(self, root: Path) -> Path:
        """Return the run's own folder below `root`."""
        return folder_of(self, root)

    def with_seed(self, seed: int) -> TransferJob:
        """Return the same fine-tuning at another seed: another draw of images, another source."""
        runtime = replace(self.runtime, seed=seed)
        return replace(self, task=self.task.with_seed(seed), runtime=runtime)

    def with_data_root(self, root: str) -> TransferJob:
        """Return the same fine-tuning with the data sets below `root`."""
        choice = None if self.choice is None else self.choice.with_data_root(root)
        return replace(self, task=self.task.with_data_root(root), choice=choice)

    def run(self, root: Path, *, progress: Progress | None = None) -> dict[str, Any]:
        """Fine-tune, or go on, or return the result of a finished run.

        Raises:
            RegraftError: Whatever keeps the run from its end, in one sentence.
        """
        check(self.task.data, self.task.model, self.task.optim, self.runtime)
        with open_folder(self, root) as folder:
            if folder.result is not None:
                return folder.result
            tuning = self.tuning
            if self.choice is not None:
                chosen = self.choice.chosen(root)
                folder.pin("chosen", chosen)
                tuning = replace(tuning, **chosen)
            folder.pin("data", fingerprint(load_once(self.task.data)))
            try:
                result = tune(
                    self.task,
                    tuning,
                    runtime=self.runtime,
                    root=root,
                    folder=folder,
                    fabric=make_fabric(self.runtime),
                    part="test",
                    points=self.points,
                    progress=progress,
                )
            except DivergenceError:
                # What was chosen at other seeds may still be too much here: that is a result.
                result = _guess(load_once(self.task.data), tuning)
            folder.finish(result)
            # Hundreds of small runs: their networks are not kept, their numbers are.
            (folder.path / "checkpoint.safetensors").unlink(missing_ok=True)
            return {"schema": 1, **result}


def _guess(splits: Any, tuning: Tuning) -> dict[str, Any]:
    """Return what a run that diverged counts as: the accuracy of guessing."""
    present = len(splits.test.labels.unique())
    metrics = {"test_accuracy": 100.0 / present, "diverged": 1.0, **tuning_metrics(tuning)}
    return {"metrics": metrics, "seconds": 0.0}
