"""The arms of the recipe `adarand`: methods, and the grid that each is tuned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from regraft.config import RuntimeConfig
from regraft.jobs.base import Job
from regraft.jobs.finetune.tuned_job import TunedJob
from regraft.jobs.finetune.tuned_select import SelectJob
from regraft.jobs.finetune.tuned_task import TunedTask, Tuning
from regraft.recipes.notes import read_data
from regraft.recipes.trials import Budget, TunedArm

_DATA = read_data(__package__ or "", "arms.toml")
ARMS = {name: TunedArm(**row) for name, row in _DATA["arms"].items()}
"""Every arm by its name in tables. scratch and plain come first: they are what others are held to."""


def transfer(
    setting: str,
    task: TunedTask,
    arms: Sequence[str],
    *,
    budget: Budget,
    runtime: RuntimeConfig,
    points: Mapping[str, int] | None = None,
) -> list[TunedJob]:
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
            grid=budget.grid(arm),
            then=budget.then(arm),
            seeds=budget.seeds,
            runtime=runtime,
        )
        jobs.append(
            TunedJob(
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


PUBLISHED: dict[str, Any] = _DATA["published"]
"""The settings of the paper by arm."""


def published(
    setting: str, task: TunedTask, arms: Sequence[str], runtime: RuntimeConfig
) -> list[Job]:
    """Return arms at the settings of the paper."""
    jobs: list[Job] = []
    for name in arms:
        row, own = PUBLISHED[name], task
        if row["method"] in ("l2sp", "delta"):
            # These two hold weights to their start; any other decay would pull them off it.
            own = replace(task, optim=replace(task.optim, weight_decay=0.0))
        control = None if name == "plain" else "plain"
        tuning = Tuning(lr=task.optim.lr, **row)
        jobs.append(
            TunedJob(
                setting=setting, arm=name, control=control, task=own, tuning=tuning, runtime=runtime
            )
        )
    return jobs
