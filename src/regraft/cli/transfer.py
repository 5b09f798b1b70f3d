"""`regraft transfer`: a training run carried over to another initialisation, and what that is worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from regraft.config import OptimConfig
from regraft.config.check import AT_LEAST_0
from regraft.errors import InputError
from regraft.jobs.transfer.config import TransferConfig, TransferFiles, TransferMethod

from .options import (
    Data,
    DataOptions,
    ModelOptions,
    Network,
    NormalisedOptions,
    Options,
    ResultOptions,
    RuntimeOptions,
    default_out,
    pick,
)
from .output import tell

if TYPE_CHECKING:
    from regraft.jobs.transfer.run import CheckpointTransfer


@dataclass(frozen=True, kw_only=True)
class Transfer(Options):
    """Carry a training run over to another initialisation of the same architecture.

    The source's weight changes are permuted to fit the target and added to it: no training. The
    folder gets the transferred checkpoints, the permutations, spec.json, card.json and README.md with
    accuracy along the steps beside the controls, and report.html. With --then-train the target is
    trained on from there, beside training from scratch and from the naive transfer. After an
    interruption the same command goes on, with the methods that are through kept.
    """

    source: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folder of a recorded trajectory, or of the run that holds one; or nothing, with --from-init and
    --from-final."""
    from_init: Path | None = None
    """Instead: the source's checkpoint before its training."""
    from_final: Path | None = None
    """Instead: the source's checkpoint after its training."""
    to: Path
    """The initialisation to carry the run over to: a checkpoint of the same architecture."""
    to_final: Path | None = None
    """That network after its own training, where there is one: adds the oracle and the paths to it."""
    out: Path | None = None
    """Folder to make; runs/transfer-NAME by default, after the file of --to."""
    match: Annotated[TransferMethod, tyro.conf.arg(aliases=["--by"])] = "fgmt"
    """fgmt and gmt match gradients; initial_weights needs no data; naive and oracle are controls."""
    trajectory_steps: int | None = None
    """Steps of the trajectory to take: 10 on a straight line, all recorded ones."""
    straight: bool = False
    """Draw a recorded trajectory straight between its ends."""
    spacing: Literal["uniform", "cosine"] = "uniform"
    """Steps on a straight line: equal, or as a learning rate on a cosine advances."""
    cut: Literal["refuse", "warn", "use"] = "refuse"
    """A recording cut short: refuse it, use what is whole and say so, or use it silently."""
    gradient_batches: int = 1
    """Batches of each gradient."""
    batch_size: int = 128
    """Images in a batch."""
    factor: float = 1.0
    """Factor on the weight changes."""
    data: str | None = None
    """A known data set or a folder of images, one subfolder a class; gmt and fgmt need it."""
    labels: Literal["by-name", "by-number"] = "by-name"
    """Which row of the classifier a class of the data is: that of its name, where the checkpoints name
    their classes, or that of its number."""
    model: str | None = None
    """A built-in network, timm/NAME, torchvision/NAME or package.module:factory; without it what
    the source's checkpoint says it is."""
    spec: Path | None = None
    """A spec.json of an earlier run, instead of tracing the model."""
    statistics_images: int = 2000
    """Training images for BatchNorm statistics."""
    curve_images: int = 2000
    """Validation and test images for the scores along the steps; the last are measured on all."""
    points: int = 11
    """Points of the paths between networks; 0 measures none."""
    plane_points: int = 7
    """With --to-final: points along each side of the plane through the trained target, the oracle's
    network and the transferred one; 0 measures none."""
    keep_steps: bool = False
    """Keep every step's checkpoint, not only the best and the last."""
    then_train: Annotated[int, AT_LEAST_0] = 0
    """Epochs to train on from the transferred point, and each control, afterwards."""
    start: Literal["best", "final"] = "best"
    """Train on from the step of the best validation accuracy, or from the last."""
    lr: float = 0.01
    """Learning rate of the further training, with SGD and momentum 0.9."""
    weight_decay: float = 0.0
    """Its weight decay."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How its learning rate falls."""
    sets: Data = field(default_factory=DataOptions)
    network: Network = field(default_factory=ModelOptions)
    images: NormalisedOptions = field(default_factory=NormalisedOptions)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    output: ResultOptions = field(default_factory=ResultOptions)

    def run(self) -> int:
        """Transfer, measure, train on, and tell."""
        from regraft.jobs.stages import Stages

        out, json = self.folder(), self.output.json
        with Stages(enabled=not json) as stages:
            done = self.job().run(out, stages)
        tell(done, out, "transfer", as_json=json)
        return 0

    def folder(self) -> Path:
        """Return the result folder."""
        return self.out or default_out("transfer", self.to)

    def job(self) -> CheckpointTransfer:
        """Return what the options say, for the engine."""
        from regraft.jobs.transfer.run import CheckpointTransfer

        if len(self.source) > 1:
            raise InputError(
                "source: give the folder of one recorded trajectory, or --from-init and --from-final "
                "instead"
            )
        self.check()
        values = self.values()
        images = self.images.config()
        then = pick(OptimConfig, values, epochs=self.then_train or 1)
        how = pick(
            TransferConfig,
            values,
            controls=True,
            trajectory="recorded" if self.source and not self.straight else "straight",
            then=then if self.then_train else None,
        )
        size = {"image_size": images.image_size, "channels": images.channels}
        return CheckpointTransfer(
            files=pick(TransferFiles, values, recording=self.source[0] if self.source else None),
            transfer=how,
            data=None if self.data is None else self.sets.config(self.data, **size),
            model=self.network.optional(self.model),
            images=images,
            runtime=self.runtime.config(
                refuse=("devices",), because="a transfer runs in one process"
            ),
        )
