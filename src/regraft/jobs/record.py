"""One training whose way is recorded: what a transfer carries over, and what it is held against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from regraft.checkpoints.model_card import header
from regraft.config import DataConfig, ModelConfig, OptimConfig
from regraft.data import Splits
from regraft.errors import InputError
from regraft.models import build
from regraft.symmetry.merge.heads import find_head
from regraft.symmetry.transfer.recorder import TrajectoryRecorder
from regraft.symmetry.transfer.trajectory import Trajectory
from regraft.tickets import stored_bytes
from regraft.train import RunFolder, fit, make_fabric
from regraft.train.loop import Progress

from .base import Job
from .data import load_once, loaders
from .predict.used_images import write_used
from .train import TrainJob, facts


@dataclass(frozen=True, kw_only=True)
class RecordJob(Job):
    """Everything that determines one recorded training; `trajectory/` in its folder.

    Attributes:
        setting: Name of the network and its training, below which the run lies.
        arm: The method's name in tables.
        states: States recorded after the initial one, evenly spread; the last is among them.
        start: The training that this one goes on from, with a head of its own; None starts anew.
    """

    arm: str = "trained"
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    states: int = 1
    start: RecordJob | None = None

    needs: ClassVar[tuple[str, ...]] = ("validation", "test")
    """Images that there have to be beside those that are trained on."""

    @property
    def plain(self) -> TrainJob:
        """The same as a job whose way is not recorded, as data and files know it."""
        return TrainJob(
            setting=self.setting,
            arm=self.arm,
            data=self.data,
            model=self.model,
            optim=self.optim,
            runtime=self.runtime,
        )

    def trajectory(self, root: Path) -> Trajectory:
        """Open what was recorded.

        Raises:
            InputError: The run is not finished, or its files are damaged.
        """
        path = self.folder(root)
        if not (path / "result.json").exists():
            raise InputError(
                f"{path} is not finished: a transfer needs its trained networks, run them first (the "
                "recipe does)"
            )
        return Trajectory.open(path / "trajectory", cut="refuse")

    def check(self) -> None:
        """See `Job.check`."""
        super().check()
        if self.states < 1:
            raise InputError(f"states={self.states}: expected at least the trained network")

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Train and record; see `Job.work`."""
        fabric = make_fabric(self.runtime)
        splits = images_of(self.data, self.needs)
        if folder.writes:
            write_used(folder.path, [splits])
        batches = loaders(
            splits, self.data, self.optim, seed=self.runtime.seed, device=fabric.device
        )
        model = self._initial(splits, root)
        steps = len(batches.train) * self.optim.epochs
        recorder = TrajectoryRecorder(
            folder.path / "trajectory",
            model,
            every=-(-steps // self.states),
            metadata=header(facts(self.plain, splits)),
        )
        if folder.load_checkpoint() is None:
            recorder.load_state_dict({"count": 0})  # a run killed before its first checkpoint
        result = fit(
            model,
            batches,
            optim=self.optim,
            runtime=self.runtime,
            folder=folder,
            steppers={"trajectory": recorder},
            progress=progress,
            fabric=fabric,
        )
        recorder.finish()
        result["stored_bytes"] = stored_bytes(model)
        return result

    def _initial(self, splits: Splits, root: Path) -> nn.Module:
        model = network(self.model, splits, self.runtime.seed)
        if self.start is not None:
            head = find_head(model)
            own = {k: v for k, v in model.state_dict().items() if k in (head.weight, head.bias)}
            trained: dict[str, Tensor] = self.start.trajectory(root).state(-1)
            model.load_state_dict({**trained, **own})
        return model


def network(config: ModelConfig, splits: Splits, seed: int) -> nn.Module:
    """Return a network for these images as a seed makes it."""
    torch.manual_seed(seed)
    return build(
        config,
        num_classes=splits.num_classes,
        channels=splits.channels,
        image_size=splits.image_size,
    )


def images_of(config: DataConfig, needs: tuple[str, ...] = RecordJob.needs) -> Splits:
    """Return a data set of images.

    Raises:
        InputError: It is a graph, or has none of the images that it needs.
    """
    splits = load_once(config)
    if not isinstance(splits, Splits):
        raise InputError(f"data {config.name!r} is a graph: a transfer needs images")
    for name in needs:
        if getattr(splits, name) is None:
            raise InputError(
                f"data {config.name!r} has no {name} images: the step is chosen on validation images "
                "and measured on test images"
            )
    return splits
