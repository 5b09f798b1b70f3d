"""Learning transfer: a training run carried over to another initialisation; numbers in `scales.toml`.

References:
    Chijiwa 2024, Transferring Learning Trajectories of Neural Networks (arXiv 2305.14122).
    Rinaldi et al. 2025 (arXiv 2505.22697) for matching initial weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.jobs.record import RecordJob
from regraft.jobs.transfer.config import TransferConfig
from regraft.jobs.transfer.job import TransferJob
from regraft.recipes.notes import read_rows
from regraft.recipes.recipe import Recipe, Scale, assemble

from .claims import THEN, read

_METRICS = (
    ("untrained_best_accuracy", "%"),
    ("untrained_final_accuracy", "%"),
    ("along_accuracy", "%"),
    ("test_accuracy", "%"),
    ("transfer_seconds", "s"),
    ("target_barrier", "nats"),
    ("source_barrier", "nats"),
    ("between_barrier", "nats"),
)


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    title = "Learning transfer between initialisations"
    package, groups = __package__ or "", _groups(scale)
    return assemble(package, groups, scale, seeds, title=title, read=read, metrics=_METRICS)


def _groups(scale: str) -> list[Scale]:
    """Return the jobs of a scale as `scales.toml` lists them, regimes behind all else."""
    there: dict[str, Experiment] = {}
    for row in read_rows(__package__ or "", "scales.toml", scale, Experiment):
        start = there[row.base].network if row.base else None
        there[row.setting] = replace(row, start=start)
    builders = [(e, e.jobs) for e in there.values()] + [(e, e.hidden) for e in there.values()]
    return [Scale(build, e.seeds, e.first) for e, build in builders]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One architecture and training, and the settings of the transfer.

    Attributes:
        setting: What is compared.
        seeds: Pairs of networks.
        first: Seed of the first of them.
        train: The training of both networks.
        transfer: What all arms share.
        states: States of the trainings that are recorded, the initial one not counted.
        base: Of a fine-tuning: the setting whose networks both begin with, each with a seed of its own.
        start: The training of those.
        shared: Setting whose networks these are, where it is another.
        otherwise: Trainings afterwards that are no part of `transfer`, by name.
        ablations: Add FGMT along a uniform line and along all recorded states.
        hides_at: Learning rate at which the effect is said to hide; None measures no such regime.
    """

    setting: str
    seeds: int
    first: int = 1
    data: DataConfig
    model: ModelConfig
    train: OptimConfig
    runtime: RuntimeConfig
    transfer: TransferConfig = field(default_factory=TransferConfig)
    states: int = 1
    base: str | None = None
    start: RecordJob | None = None
    shared: str | None = None
    otherwise: Mapping[str, OptimConfig] = field(default_factory=dict)
    ablations: bool = False
    hides_at: float | None = None

    @property
    def network(self) -> RecordJob:
        """The training of either network."""
        return RecordJob(
            setting=f"networks/{self.shared or self.setting}",
            data=self.data,
            model=self.model,
            optim=self.train,
            runtime=self.runtime,
            states=self.states,
            start=self.start,
        )

    def job(self, arm: str, control: str | None = "naive", **options: Any) -> TransferJob:
        """Return one arm; `options` are those of `TransferConfig`."""
        options = {"batch_size": self.train.batch_size, **options}
        if options.get("match") not in ("gmt", "fgmt"):
            options["plane_points"] = 0  # a plane is measured for what matches gradients
        return TransferJob(
            setting=self.setting,
            arm=arm,
            control=control,
            source=self.network,
            target=self.network,
            transfer=replace(self.transfer, **options),
            runtime=self.runtime,
        )

    def arms(self) -> list[TransferJob]:
        """Return the methods with every control, each trained on."""
        matches = ("naive", "oracle", "initial_weights", "gmt", "fgmt", "scratch")
        jobs = [self._matched(match) for match in matches]
        if self.states > 1:
            jobs.append(self.job("fgmt_recorded", match="fgmt", trajectory="recorded"))
        return jobs

    def jobs(self) -> list[TransferJob]:
        """Return the arms, their ablations, and what trains on otherwise."""
        jobs = self.arms()
        if self.ablations:
            whole = {"trajectory": "recorded", "trajectory_steps": self.states}
            jobs += [
                self.job("fgmt_uniform", match="fgmt", spacing="uniform"),
                self.job(f"fgmt_recorded_{self.states}", match="fgmt", **whole),
            ]
        for name, optim in self.otherwise.items():
            jobs += self.then(name, optim)
        return jobs

    def then(self, name: str, optim: OptimConfig) -> list[TransferJob]:
        """Return what trains on otherwise, from the same transfers between the same networks."""
        how = replace(self.transfer, then=optim, points=0, plane_points=0)
        setting = f"{self.setting}/{THEN}{name}"
        other = replace(self, setting=setting, shared=self.setting, transfer=how)
        return [other._matched(match) for match in ("naive", "oracle", "gmt", "fgmt", "scratch")]

    def regime(self, name: str, **options: Any) -> list[TransferJob]:
        """Return what shows the effect, or hides it, under another training; `options` are changed."""
        brief = replace(self.transfer, then=None, points=0, plane_points=0)
        other = replace(self, setting=f"{self.setting}/{name}", states=1, transfer=brief, **options)
        return [other._matched(match) for match in ("naive", "oracle", "fgmt")]

    def _matched(self, match: str) -> TransferJob:
        return self.job(match, None if match == "naive" else "naive", match=match)

    def hidden(self) -> list[TransferJob]:
        """Return both regimes in which the effect is said to hide, if the learning rate of one is known."""
        if self.hides_at is None:
            return []
        high = replace(self.train, lr=self.hides_at)
        raw = replace(self.data, normalize="none")
        jobs = self.regime(f"lr={self.hides_at:g}", train=high)
        return [*jobs, *self.regime("unnormalised", data=raw)]
