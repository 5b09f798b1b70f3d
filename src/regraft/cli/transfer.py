"""`regraft transfer`: a training run carried over to another initialisation, and what that is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from .json_option import json_object
from .output import print_json, say, table

if TYPE_CHECKING:
    from regraft.config import ModelConfig
    from regraft.jobs.transfer.run import CheckpointTransfer

_Match = Literal["gmt", "fgmt", "naive", "oracle", "initial_weights"]


@dataclass(frozen=True, kw_only=True)
class Transfer:
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
    match: Annotated[_Match, tyro.conf.arg(aliases=["--by"])] = "fgmt"
    """fgmt and gmt match gradients; initial_weights needs no data; naive and oracle are controls."""
    trajectory_steps: int | None = None
    """Steps of the trajectory to take: 10 on a straight line, all recorded ones."""
    straight: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
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
    width: float = 1.0
    """Width factor of a built-in network."""
    model_options: str = "{}"
    """Further keyword arguments of the model's factory, as a JSON object."""
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
    keep_steps: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep every step's checkpoint, not only the best and the last."""
    then_train: int = 0
    """Epochs to train on from the transferred point, and each control, afterwards."""
    start: Literal["best", "final"] = "best"
    """Train on from the step of the best validation accuracy, or from the last."""
    lr: float = 0.01
    """Learning rate of the further training, with SGD and momentum 0.9."""
    weight_decay: float = 0.0
    """Its weight decay."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How its learning rate falls."""
    data_root: str | None = None
    """Folder of the known data sets; without it REGRAFT_DATA, then ~/.cache/regraft/data."""
    offline: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Stop at a missing known set instead of fetching it."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Stop at an image that cannot be decoded, or warn and go on."""
    image_size: int | None = None
    """Side of the images in pixels; without it that of the data, or what fits the checkpoint."""
    channels: int | None = None
    """Channels of the images, likewise."""
    mean: tuple[float, ...] = ()
    """Mean of each channel by which images are normalised; without it the data set's own."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel."""
    seed: int = 1
    """Seed of batches and matcher."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """CPU threads."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object instead of text."""

    def run(self) -> int:
        """Transfer, measure, train on, and tell."""
        from regraft.jobs.stages import Stages
        from regraft.jobs.transfer.card import score_table, summary

        out = self.out or Path("runs") / f"transfer-{self.to.stem}"
        finished = (out / "result.json").exists()
        with Stages(enabled=not self.json) as stages:
            card = self.job().run(out, stages)
        if self.json:
            print_json({"out": str(out), **card})
            return 0
        if finished:
            say(f"{out} is finished already; remove it to transfer again")
        for line in summary(card):
            say(line)
        if card["curves"]:
            table(*score_table(card))
        say(f"transferred: {out}")
        return 0

    def job(self) -> CheckpointTransfer:
        """Return what the options say, for the engine."""
        from regraft.config import DataConfig, ImageConfig, OptimConfig, RuntimeConfig
        from regraft.errors import InputError
        from regraft.jobs.transfer.config import TransferConfig, TransferFiles
        from regraft.jobs.transfer.run import CheckpointTransfer

        if len(self.source) > 1:
            raise InputError(
                "source: give the folder of one recorded trajectory, or --from-init and --from-final "
                "instead"
            )
        if self.then_train < 0:
            raise InputError(f"--then-train {self.then_train}: expected epochs, at least 0")
        for name in ("lr", "width"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(
                    f"--{name} {getattr(self, name)}: expected a finite number above 0"
                )
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"--weight-decay {self.weight_decay}: expected at least 0")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads {self.threads}: expected at least 1")
        then = OptimConfig(
            lr=self.lr,
            weight_decay=self.weight_decay,
            epochs=self.then_train or 1,
            batch_size=self.batch_size,
            schedule=self.schedule,
        )
        how = TransferConfig(
            match=self.match,
            controls=True,
            trajectory="recorded" if self.source and not self.straight else "straight",
            trajectory_steps=self.trajectory_steps,
            spacing=self.spacing,
            factor=self.factor,
            gradient_batches=self.gradient_batches,
            batch_size=self.batch_size,
            statistics_images=self.statistics_images,
            curve_images=self.curve_images,
            points=self.points,
            plane_points=self.plane_points,
            keep_steps=self.keep_steps,
            start=self.start,
            then=then if self.then_train else None,
        )
        return CheckpointTransfer(
            files=TransferFiles(
                recording=self.source[0] if self.source else None,
                from_init=self.from_init,
                from_final=self.from_final,
                to=self.to,
                to_final=self.to_final,
                spec=self.spec,
                cut=self.cut,
                labels=self.labels,
            ),
            transfer=how,
            data=None
            if self.data is None
            else DataConfig(
                name=self.data,
                root=self.data_root,
                download=not self.offline,
                unreadable=self.unreadable,
                image_size=self.image_size,
            ),
            model=self._model(),
            images=ImageConfig(
                image_size=self.image_size, channels=self.channels, mean=self.mean, std=self.std
            ),
            runtime=RuntimeConfig(
                seed=self.seed, accelerator=self.accelerator, threads=self.threads
            ),
        )

    def _model(self) -> ModelConfig | None:
        from regraft.config import ModelConfig

        if self.model is None:
            return None
        options = json_object(self.model_options)
        return ModelConfig(name=self.model, width=self.width, options=options)
