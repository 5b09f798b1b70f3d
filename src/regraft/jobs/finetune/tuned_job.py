"""One fine-tuning of the recipe `adarand`, with the learning rate and weight that were chosen for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft.errors import DivergenceError
from regraft.jobs.base import Job
from regraft.train import RunFolder, make_fabric
from regraft.train.loop import Progress

from .tuned_select import SelectJob
from .tuned_task import TunedTask, Tuning, tune, tuning_metrics


@dataclass(frozen=True, kw_only=True)
class TunedJob(Job):
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

    keeps_checkpoint = False  # hundreds of small runs would fill the disk

    task: TunedTask
    tuning: Tuning
    choice: SelectJob | None = None
    points: int = 0

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines the numbers."""
        config = super().config()
        if self.choice is not None:
            # Learning rate and weight follow from the selection, which is part of the identity.
            config["tuning"].pop("lr"), config["tuning"].pop("weight")
        return config

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Fine-tune; see `Job.work`."""
        tuning = self.tuning
        if self.choice is not None:
            chosen = self.choice.chosen(root)
            folder.pin("chosen", chosen)
            tuning = replace(tuning, **chosen)
        try:
            return tune(
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
            return _guess(self.task.splits(self.runtime.seed), tuning)


def _guess(splits: Any, tuning: Tuning) -> dict[str, Any]:
    """Return what a run that diverged counts as: the accuracy of guessing."""
    present = len(splits.test.labels.unique())
    metrics = {"test_accuracy": 100.0 / present, "diverged": 1.0, **tuning_metrics(tuning)}
    return {"metrics": metrics, "seconds": 0.0}
