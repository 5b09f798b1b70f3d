"""One run that carries a recorded training over to another initialisation, and trains on from there.

References:
    Chijiwa 2024, Transferring Learning Trajectories of Neural Networks (arXiv 2305.14122).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.jobs.base import Job
from regraft.jobs.data import fingerprint
from regraft.jobs.record import RecordJob, images_of
from regraft.jobs.train import TrainJob
from regraft.train import RunFolder, make_fabric
from regraft.train.loop import Progress

from .config import TransferConfig


def pair_of(seed: int) -> tuple[int, int]:
    """Return the seeds of source and target: 101 and 102, 201 and 202, ..., as the paper's are."""
    return 100 * seed + 1, 100 * seed + 2


@dataclass(frozen=True, kw_only=True)
class TransferJob(Job):
    """Everything that determines one transfer.

    Attributes:
        setting: What is compared here.
        arm: The method's name in tables.
        control: The arm this one is held against.
        source: The training that is carried over.
        target: The same training of the network it is carried to: its initialisation is where
            transfers start, its end what the oracle and the paths need.
        transfer: What is done.
    """

    source: RecordJob
    target: RecordJob
    transfer: TransferConfig = field(default_factory=TransferConfig)

    @property
    def then(self) -> TrainJob:
        """The training afterwards, as data and files know it."""
        return replace(
            self.target.plain,
            setting=self.setting,
            arm=self.arm,
            optim=self.transfer.then or self.target.optim,
            runtime=self.runtime,
        )

    def with_seed(self, seed: int) -> TransferJob:
        """Return the same transfer at another seed, between networks of the pair that belongs to it."""
        source, target = pair_of(seed)
        return replace(
            super().with_seed(seed),
            source=self.source.with_seed(source),
            target=self.target.with_seed(target),
        )

    def check(self) -> None:
        """See `Job.check`."""
        super().check()
        for name in ("model", "data"):
            if getattr(self.source, name) != getattr(self.target, name):
                raise InputError(
                    f"source and target differ in {name}: a training is carried over between networks "
                    "of one architecture on one data set"
                )
        if self.transfer.by == "scratch" and self.transfer.then is None:
            raise InputError("by='scratch' only trains: give then=OptimConfig(...)")

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Transfer, measure and train on; see `Job.work`."""
        from .recipe_work import Transferring

        fabric = make_fabric(self.runtime)
        splits = images_of(self.target.data)
        folder.pin("data", fingerprint(splits))
        return Transferring(self, splits, folder, fabric, root, progress).result()
