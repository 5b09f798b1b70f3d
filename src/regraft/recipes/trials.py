"""What each arm of a recipe is tuned with: as many trials, all at once or in stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.features import METHODS
from regraft.jobs.finetune.tuned_task import Tuning


@dataclass(frozen=True, kw_only=True)
class TunedArm:
    """A method and what it is tuned on.

    Attributes:
        method: A name of `regraft.features.METHODS`.
        options: Its options.
        weights: Weights to choose from; none for a method without one.
        levels: More options to choose from, each with as many values as there are weights.
        pace: Factor of the budget's learning rates, for a method that diverges at them.
        scratch: Start from random weights.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Sequence[float] = ()
    levels: Mapping[str, Sequence[float]] = field(default_factory=dict)
    pace: float = 1.0
    scratch: bool = False


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

    def grid(self, arm: TunedArm) -> tuple[Tuning, ...]:
        """Return what an arm tries.

        Every learning rate meets every weight. An option with levels takes a Latin square's: each
        of its values meets each learning rate and each weight once, and trials stay as many.
        """
        plain = Tuning(method=arm.method, options=arm.options)
        if not arm.weights:
            return tuple(replace(plain, lr=lr) for lr in self.fine)
        trials = []
        for i, lr in enumerate(arm.pace * rate for rate in self.rates):
            for j, weight in enumerate(arm.weights):
                more = {name: v[(i + j) % len(v)] for name, v in arm.levels.items()}
                trials.append(replace(plain, lr=lr, weight=weight, options={**arm.options, **more}))
        return tuple(trials)

    def then(self, arm: TunedArm) -> tuple[tuple[Mapping[str, Any], ...], ...]:
        """Return later stages of a selection, which it does not have."""
        return ()


@dataclass(frozen=True, kw_only=True)
class Staged(Budget):
    """As many trials for every arm, but one thing after the other, where a trial takes a minute.

    Learning rate first (at a middling weight), then the weight around it, then what is the arm's own:
    AdaRand's rate for its means, of others finer steps. An arm without a weight has rates throughout.
    """

    rates: tuple[float, ...] = (0.01, 0.03)
    seeds: tuple[int, ...] = (1001, 1002, 1003)

    def grid(self, arm: TunedArm) -> tuple[Tuning, ...]:
        """Return the learning rates, a method's own fraction of them, at the middle weight."""
        weight = arm.weights[len(arm.weights) // 2] if arm.weights else None
        first = Tuning(method=arm.method, options=arm.options, weight=weight)
        scale = arm.pace * METHODS[arm.method].rate_scale
        return tuple(replace(first, lr=float(f"{scale * lr:.3g}")) for lr in self.rates)

    def then(self, arm: TunedArm) -> tuple[tuple[Mapping[str, Any], ...], ...]:
        """Return the two later stages."""
        if not arm.weights:
            return tuple(tuple({"lr": f} for f in stage) for stage in (_RATES, _FINER_RATES))
        own: tuple[Mapping[str, Any], ...] = _FINER
        if "prior_lr" in arm.levels:
            own = tuple({"options": {"prior_scale": s}} for s in _PRIOR_SCALES)
        return tuple({"weight": f} for f in _WEIGHTS), own


_WEIGHTS = (0.03, 0.2, 2.2, 5.0)
_RATES, _FINER_RATES = (0.1, 0.3, 2.0, 4.0), (0.6, 0.8, 1.4)
_FINER = ({"weight": 0.6}, {"weight": 1.5}, {"lr": 0.5})
_PRIOR_SCALES = (0.0, 0.333, 3.0)
"""Factors: of the middle weight, of the best learning rate, of AdaRand's default rate for its means."""
