"""The arms of the recipe `adarand`: methods, and the grid that each is tuned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.config import RuntimeConfig

from .adarand_job import TransferJob
from .adarand_select import SelectJob
from .adarand_task import Task, Tuning
from .runnable import Runnable

Pairs = tuple[tuple[float, float | None], ...]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method and what it is tuned on.

    Attributes:
        method: A name of `regraft.features.METHODS`.
        options: Its options.
        weights: Weights to choose from; none for a method without one.
        scratch: Start from random weights.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[float, ...] = ()
    scratch: bool = False


ARMS: dict[str, Arm] = {
    "scratch": Arm(method="plain", scratch=True),
    "plain": Arm(method="plain"),
    "adarand": Arm(method="adarand", weights=(0.3, 1.0, 3.0)),
    "adarand_orthogonal": Arm(
        method="adarand", options={"prior": "orthogonal"}, weights=(0.3, 1.0, 3.0)
    ),
    "randreg_class": Arm(method="randreg", options={"kind": "class"}, weights=(0.3, 1.0, 3.0)),
    "randreg_source": Arm(method="randreg", options={"kind": "source"}, weights=(0.1, 0.3, 1.0)),
    "randreg_normal": Arm(method="randreg", options={"kind": "normal"}, weights=(0.01, 0.1, 1.0)),
    "randreg_uniform": Arm(method="randreg", options={"kind": "uniform"}, weights=(0.01, 0.1, 1.0)),
    "feature_norm": Arm(method="feature_norm", weights=(0.03, 0.1, 0.3)),
    "l2sp": Arm(method="l2sp", weights=(0.001, 0.01, 0.1)),
    "delta": Arm(method="delta", weights=(0.01, 0.05, 0.2)),
    "bss": Arm(method="bss", weights=(1e-4, 1e-3, 1e-2)),
    "supcon": Arm(method="supcon", weights=(0.1, 0.3, 1.0)),
    "core_tuning": Arm(method="core_tuning", weights=(0.1, 1.0, 10.0)),
    "co_tuning": Arm(method="co_tuning", weights=(0.3, 1.0, 3.0)),
    "dr_tune": Arm(method="dr_tune", weights=(0.1, 0.3, 1.0)),
    "lp_ft": Arm(method="lp_ft"),
    "bitfit": Arm(method="bitfit"),
}
"""Every arm by its name in tables. scratch and plain come first: they are what others are held to."""

MAIN = ("scratch", "plain", "adarand", "randreg_class", "feature_norm")
"""The arms of data reduction curves."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm is tuned with: as many trials, whether it has a weight or not.

    Attributes:
        rates: Learning rates of an arm with a weight; they are tried with each of its weights.
        fine: Learning rates of an arm without one.
        seeds: Selection seeds.
    """

    rates: tuple[float, ...] = (0.05, 0.15, 0.4)
    fine: tuple[float, ...] = (0.01, 0.03, 0.06, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0)
    seeds: tuple[int, ...] = (1001, 1002)

    def grid(self, arm: Arm) -> Pairs:
        """Return the pairs that an arm tries."""
        if not arm.weights:
            return tuple((lr, None) for lr in self.fine)
        return tuple((lr, weight) for lr in self.rates for weight in arm.weights)


def transfer(
    setting: str,
    task: Task,
    arms: Sequence[str],
    *,
    budget: Budget,
    runtime: RuntimeConfig,
    points: Mapping[str, int] | None = None,
) -> list[TransferJob]:
    """Return the arms of a setting, each with its own selection.

    Args:
        setting: Name of the setting.
        task: Data and network.
        arms: Names of `ARMS`.
        budget: What they are tuned with.
        runtime: Where to compute.
        points: Times that the features of an arm are described.
    """
    jobs = []
    for name in arms:
        arm = ARMS[name]
        own = task.from_scratch() if arm.scratch else task
        tuning = Tuning(method=arm.method, options=arm.options)
        choice = SelectJob(
            setting=f"selection/{setting}",
            arm=name,
            task=own,
            tuning=tuning,
            grid=budget.grid(arm),
            seeds=budget.seeds,
            runtime=runtime,
        )
        jobs.append(
            TransferJob(
                setting=setting,
                arm=name,
                control=None if name == "plain" else "plain",
                task=own,
                tuning=tuning,
                choice=choice,
                points=(points or {}).get(name, 0),
                runtime=runtime,
            )
        )
    return jobs


def published(
    setting: str, task: Task, arms: Mapping[str, Tuning], *, runtime: RuntimeConfig
) -> list[Runnable]:
    """Return arms at settings that a paper gives, with nothing chosen here."""
    return [
        TransferJob(
            setting=setting,
            arm=name,
            control=None if name == "plain" else "plain",
            # These two hold weights to their start; any other decay would pull them off it.
            task=replace(task, optim=replace(task.optim, weight_decay=0.0))
            if tuning.method in ("l2sp", "delta")
            else task,
            tuning=tuning,
            runtime=runtime,
        )
        for name, tuning in arms.items()
    ]
