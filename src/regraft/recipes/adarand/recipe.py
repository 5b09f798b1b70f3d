"""AdaRand and its rivals where data are scarce: each tuned alike on validation; numbers in `scales.toml`.

References:
    Yamaguchi et al., "Adaptive random feature regularization on fine-tuning deep neural networks",
    CVPR 2024, section 5.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig, TicketConfig
from regraft.errors import InputError
from regraft.jobs.base import Job
from regraft.jobs.finetune.tuned_task import TunedTask
from regraft.jobs.train import TrainJob
from regraft.recipes.notes import arm_names, named_rows, read_rows
from regraft.recipes.recipe import Recipe, Scale, assemble
from regraft.recipes.trials import Budget, Staged

from .arms import ARMS, PUBLISHED, published, transfer
from .claims import read

_SCALES = (__package__ or "", "scales.toml")
_ANALYSED = ("plain", "adarand", "randreg_class", "randreg_uniform", "feature_norm")


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    title = "AdaRand and its rivals on few images"
    groups = [Scale(row.jobs, row.seeds) for row in settings(scale)]
    return assemble(__package__ or "", groups, scale, seeds, title=title, read=read)


def settings(scale: str) -> list[AdaRandSetting]:
    """Return the rows of `scales.toml` for a scale."""
    return read_rows(*_SCALES, scale, AdaRandSetting)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Data and training of a source network."""

    key: str
    name: str
    data: DataConfig
    optim: OptimConfig

    def job(self, model: ModelConfig, runtime: RuntimeConfig) -> TrainJob:
        only = self.data.only_classes
        classes = f"/classes={only[0]}-{only[-1]}" if only else ""
        return TrainJob(
            setting=f"sources/{self.data.name}{classes}/{model.name}",
            arm="dense",
            data=self.data,
            model=model,
            ticket=TicketConfig(method="dense"),
            optim=self.optim,
            runtime=runtime,
        )


@dataclass(frozen=True, kw_only=True)
class _Target:
    """Data of a target."""

    name: str
    data: DataConfig


@dataclass(frozen=True, kw_only=True)
class AdaRandSetting:
    """Arms on every one of some sources, targets, networks and sizes; a row of `scales.toml`.

    Attributes:
        seeds: How many seeds each arm has.
        source: Key of `[[source]]`; without it the weights are the hub's, trained on ImageNet.
        targets: Names of `[[target]]`.
        models: The networks; the setting is named by the network where there is none of `shots`.
        shots: Training images of each class.
        shares: Shares of the training images, where there are no shots.
        arms: Names of arms, or of lists of them under `[arms]`.
        points: Times that the features of some arms are described.
        optim: Optimiser and length; a learning rate is chosen but in published settings.
        validation_images: How many held-out images judge a trial; None for all.
        test_images: How many images give the figure; None for all.
        mean_std: What pixels are normalised by, where it is not what the weights ask for.
        budget: What each arm is tuned with.
        staged: The same in stages, instead.
        published: Nothing is chosen: arms have the paper's settings.
        runtime: Where to compute.
    """

    seeds: int
    source: str | None = None
    targets: Sequence[str]
    models: tuple[ModelConfig, ...]
    shots: Sequence[int] = ()
    shares: Sequence[float] = ()
    arms: Sequence[str]
    points: int = 0
    optim: OptimConfig
    validation_images: int | None = 1000
    test_images: int | None = None
    mean_std: tuple[float, float] | None = None
    budget: Budget = field(default_factory=Budget)
    staged: Staged | None = None
    published: bool = False
    runtime: RuntimeConfig

    def jobs(self) -> list[Job]:
        """Return every arm."""
        known = PUBLISHED if self.published else ARMS
        names = arm_names(*_SCALES, self.arms, known=known)
        points = dict.fromkeys(_ANALYSED, self.points) if self.points else {}
        budget = self.staged or self.budget
        jobs: list[Job] = []
        for setting, task in self.tasks():
            if self.published:
                jobs += published(setting, task, names, self.runtime)
            else:
                more: dict[str, Any] = {"budget": budget, "runtime": self.runtime}
                jobs += transfer(setting, task, names, points=points, **more)
        return jobs

    def tasks(self) -> list[tuple[str, TunedTask]]:
        """Return the name of each setting, and what its arms share.

        Raises:
            InputError: Neither shots nor shares, or several networks of one name.
        """
        if bool(self.shots) == bool(self.shares) or (self.shots and len(self.models) > 1):
            raise InputError(
                f"{_SCALES[1]}: a row of {', '.join(self.targets)} needs shots, of one network, or shares"
            )
        start = (
            None
            if self.source is None
            else named_rows(*_SCALES, "source", _Source, [self.source])[0]
        )
        name = "imagenet" if start is None else start.name
        made = []
        for target, model in itertools.product(
            named_rows(*_SCALES, "target", _Target, self.targets), self.models
        ):
            task = TunedTask(
                data=target.data,
                model=model,
                source=None if start is None else start.job(model, self.runtime),
                pretrained=start is None,
                validation_images=self.validation_images,
                test_images=self.test_images,
                optim=self.optim,
                mean_std=self.mean_std,
            )
            pair = f"{name}-to-{target.name}"
            made += [(f"{pair}/shots={n}", replace(task, shots=n)) for n in self.shots]
            network = model.name.rpartition("/")[2]
            made += [(f"{pair}/{network}/share={s:g}", replace(task, share=s)) for s in self.shares]
        return made
