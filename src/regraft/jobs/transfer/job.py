"""One run that carries a recorded training over to another initialisation, and trains on from there.

References:
    Chijiwa 2024, Transferring Learning Trajectories of Neural Networks (arXiv 2305.14122).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from regraft.config import RuntimeConfig, check, to_dict
from regraft.errors import InputError
from regraft.jobs.base import folder_of, open_folder
from regraft.jobs.record import RecordedJob, images_of
from regraft.jobs.train import Job, fingerprint, runtime_identity
from regraft.train import make_fabric
from regraft.train.loop import Progress

from .config import TransferConfig


def pair_of(seed: int) -> tuple[int, int]:
    """Return the seeds of source and target: 101 and 102, 201 and 202, ..., as the paper's are."""
    return 100 * seed + 1, 100 * seed + 2


@dataclass(frozen=True, kw_only=True)
class TransferJob:
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

    setting: str
    arm: str
    control: str | None = None
    source: RecordedJob
    target: RecordedJob
    transfer: TransferConfig = field(default_factory=TransferConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    @property
    def sources(self) -> tuple[RecordedJob, RecordedJob]:
        """Both trainings."""
        return (self.source, self.target)

    @property
    def then(self) -> Job:
        """The training afterwards, as data and files know it."""
        return replace(
            self.target.plain,
            setting=self.setting,
            arm=self.arm,
            optim=self.transfer.then or self.target.optim,
            runtime=self.runtime,
        )

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines the numbers."""
        how = to_dict(self.transfer)
        if not self.transfer.plane_points:  # runs from before there were planes are the same runs
            del how["plane_points"]
        return {
            "source": self.source.config(),
            "target": self.target.config(),
            "transfer": how,
            "runtime": runtime_identity(self.runtime),
        }

    def folder(self, root: Path) -> Path:
        """Return the run's own folder below `root`."""
        return folder_of(self, root)

    def with_seed(self, seed: int) -> TransferJob:
        """Return the same transfer at another seed, between networks of the pair that belongs to it."""
        source, target = pair_of(seed)
        return replace(
            self,
            source=self.source.with_seed(source),
            target=self.target.with_seed(target),
            runtime=replace(self.runtime, seed=seed),
        )

    def with_data_root(self, root: str) -> TransferJob:
        """Return the same transfer with the data sets below `root`."""
        return replace(
            self, source=self.source.with_data_root(root), target=self.target.with_data_root(root)
        )

    def run(self, root: Path, *, progress: Progress | None = None) -> dict[str, Any]:
        """Transfer, measure and train on, or go on, or return the result of a finished run.

        Raises:
            RegraftError: Whatever keeps the run from its end, in one sentence.
        """
        from .recipe_work import Transferring

        self._check()
        with open_folder(self, root) as folder:
            if folder.result is not None:
                return folder.result
            fabric = make_fabric(self.runtime)
            splits = images_of(self.target.data)
            folder.pin("data", fingerprint(splits))
            result = Transferring(self, splits, folder, fabric, root, progress).result()
            folder.finish(result)
            return {"schema": 1, **result}

    def _check(self) -> None:
        check(self.target.data, self.target.model, self.then.optim, self.runtime)
        for name in ("model", "data"):
            if getattr(self.source, name) != getattr(self.target, name):
                raise InputError(
                    f"source and target differ in {name}: a training is carried over between networks "
                    "of one architecture on one data set"
                )
        if self.transfer.by == "scratch" and self.transfer.then is None:
            raise InputError("by='scratch' only trains: give then=OptimConfig(...)")
