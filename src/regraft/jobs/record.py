"""One training whose way is recorded: what a transfer carries over, and what it is held against."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig, check, to_dict
from regraft.data import Splits
from regraft.errors import InputError
from regraft.models import build
from regraft.symmetry.merge.heads import find_head
from regraft.symmetry.transfer.recorder import TrajectoryRecorder
from regraft.symmetry.transfer.trajectory import Trajectory
from regraft.tickets import stored_bytes
from regraft.train import fit, make_fabric
from regraft.train.loop import Progress

from .base import folder_of, open_folder
from .train import Job, data_identity, facts, fingerprint, load_once, loaders, runtime_identity


@dataclass(frozen=True, kw_only=True)
class RecordedJob:
    """Everything that determines one recorded training; `trajectory/` in its folder.

    Attributes:
        setting: Name of the network and its training, below which the run lies.
        arm: The method's name in tables.
        states: States recorded after the initial one, evenly spread; the last is among them.
        start: The training that this one goes on from, with a head of its own; None starts anew.
    """

    setting: str
    arm: str = "trained"
    control: str | None = None
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    states: int = 1
    start: RecordedJob | None = None

    @property
    def sources(self) -> tuple[RecordedJob, ...]:
        """The run that this one starts from, if there is one."""
        return () if self.start is None else (self.start,)

    @property
    def plain(self) -> Job:
        """The same as a job whose way is not recorded, as data and files know it."""
        return Job(
            setting=self.setting,
            arm=self.arm,
            data=self.data,
            model=self.model,
            optim=self.optim,
            runtime=self.runtime,
        )

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines the numbers."""
        config: dict[str, Any] = {"data": data_identity(self.data), "states": self.states}
        config |= {"model": to_dict(self.model), "optim": to_dict(self.optim)}
        config["runtime"] = runtime_identity(self.runtime)
        if self.start is not None:
            config["start"] = self.start.config()
        return config

    def folder(self, root: Path) -> Path:
        """Return the run's own folder below `root`."""
        return folder_of(self, root)

    def with_seed(self, seed: int) -> RecordedJob:
        """Return the same training at another seed, what it starts from with it."""
        start = None if self.start is None else self.start.with_seed(seed)
        return replace(self, runtime=replace(self.runtime, seed=seed), start=start)

    def with_data_root(self, root: str) -> RecordedJob:
        """Return the same training with its data sets below `root`."""
        start = None if self.start is None else self.start.with_data_root(root)
        return replace(self, data=replace(self.data, root=root), start=start)

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

    def run(self, root: Path, *, progress: Progress | None = None) -> dict[str, Any]:
        """Train and record, or go on, or return the result of a finished run.

        Raises:
            RegraftError: Whatever keeps the run from its end, in one sentence.
        """
        check(self.data, self.model, self.optim, self.runtime)
        if self.states < 1:
            raise InputError(f"states={self.states}: expected at least the trained network")
        with open_folder(self, root) as folder:
            if folder.result is not None:
                return folder.result
            fabric = make_fabric(self.runtime)
            splits = images_of(self.data)
            folder.pin("data", fingerprint(splits))
            batches = loaders(splits, self.plain, fabric.device)
            model = self._initial(splits, root)
            steps = len(batches.train) * self.optim.epochs
            recorder = TrajectoryRecorder(
                folder.path / "trajectory",
                model,
                every=-(-steps // self.states),
                metadata={"regraft.model": json.dumps(facts(self.plain, splits))},
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
            folder.finish(result)
            return {"schema": 1, **result}

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


def images_of(config: DataConfig) -> Splits:
    """Return a data set of images.

    Raises:
        InputError: It is a graph, or has no validation or test images.
    """
    splits = load_once(config)
    if not isinstance(splits, Splits):
        raise InputError(f"data {config.name!r} is a graph: a transfer needs images")
    for name in ("validation", "test"):
        if getattr(splits, name) is None:
            raise InputError(
                f"data {config.name!r} has no {name} images: the step is chosen on validation images "
                "and measured on test images"
            )
    return splits
