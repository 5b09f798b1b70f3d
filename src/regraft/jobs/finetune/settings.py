"""What the trials of a search try, and how many of them fit into a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from regraft.config import FinetuneConfig, SearchConfig
from regraft.features import METHODS
from regraft.features.registry import AUTO, COMPARED

from .methods import has_weight, own_weight

_RATES = {"sgd": (0.01, 0.03, 0.003, 0.1, 0.001), "adamw": (1e-4, 3e-4, 3e-5, 1e-3, 1e-5)}
SHORT = 3
_KEPT = 3
_FEWEST = 6


@dataclass(frozen=True)
class Setting:
    """What a trial tries."""

    method: str
    lr: float
    weight: float | None

    def __str__(self) -> str:
        return f"lr={self.lr:g}" + ("" if self.weight is None else f" weight={self.weight:g}")


@dataclass(frozen=True)
class Rung:
    """The best `trials` settings of the rung before, or the first of all, trained for `epochs`."""

    trials: int
    epochs: int


def settings(
    finetune: FinetuneConfig, optimizer: str, config: SearchConfig, lr: float | None
) -> list[Setting]:
    """Return what there is to choose from, the most promising first.

    The grid is learning rates by weights. A plan with few trials takes the first, so the order goes
    outwards from the two defaults. Of methods that are compared each has as many settings, in turn.
    """
    if finetune.method == AUTO:
        grids = [
            settings(replace(finetune, method=name), optimizer, config, lr) for name in COMPARED
        ]
        return [setting for row in zip(*grids, strict=False) for setting in row]
    scale = METHODS[finetune.method].rate_scale
    own_rates = tuple(round(scale * rate, 12) for rate in _RATES[optimizer])
    rates = (lr,) if lr is not None else config.lr or own_rates
    weights: tuple[float | None, ...] = (None,)
    if has_weight(finetune.method):
        if finetune.weight is not None:
            weights = (finetune.weight,)
        elif config.weight:
            weights = config.weight
        else:
            own, relative = own_weight(finetune)
            weights = tuple(own * f for f in ((1.0, 0.3, 0.1) if relative else (1.0, 0.1, 10.0)))
    places = sorted(
        ((i, j) for i in range(len(rates)) for j in range(len(weights))),
        key=lambda at: (sum(at), at[0]),
    )
    return [Setting(finetune.method, rates[i], weights[j]) for i, j in places]


def plan(
    count: int, epochs: int, seconds: float, *, epoch: float, start: float
) -> tuple[Rung, ...] | None:
    """Return the rungs that fit into a time, None where not even two short trials do.

    In this order: every setting at full length; halving, a third of the length for the first n
    settings (six at least) and full length for the best third of them (two at least); a third of
    the length alone.

    An epoch takes `epoch` seconds, and a trial `start` before its first step.
    """
    short = max(1, epochs // SHORT)
    options = [(Rung(count, epochs),)]
    options += [halving(n, epochs) for n in range(count, min(count, _FEWEST) - 1, -1)]
    options += [(Rung(n, short),) for n in range(count, 1, -1)]
    for rungs in options:
        if sum(r.trials * (start + r.epochs * epoch) for r in rungs) <= seconds:
            return rungs
    return None


def halving(trials: int, epochs: int) -> tuple[Rung, ...]:
    """Return two rungs, the second for the best third; one where there is nothing to halve."""
    short = max(1, epochs // SHORT)
    if short == epochs or trials == 1:
        return (Rung(trials, epochs),)
    return (Rung(trials, short), Rung(max(2, math.ceil(trials / _KEPT)), epochs))
