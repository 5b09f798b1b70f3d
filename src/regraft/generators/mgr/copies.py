"""What a meta step may look from: copies of the network for each fold, a running average, a Fisher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .hypergradient import gradient, leaf_weights
from .passes import Weights

_MOMENTUM = 0.9


class Copies:
    """The network's trained tensors once for each fold, trained beside it by SGD with momentum.

    The copy of fold k never meets the images of fold k, so that they tell it something when they validate.

    Args:
        weights: What the copies start from.
        folds: Number of copies.
        lr: Learning rate.
    """

    def __init__(self, weights: Weights, folds: int, lr: float) -> None:
        self.lr = lr
        self.weights = [{n: w.detach().clone() for n, w in weights.items()} for _ in range(folds)]
        self._velocity = [
            {n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(folds)
        ]

    def step(self, loss: Callable[[int, Weights], Tensor]) -> None:
        """Take a step in each copy on `loss(fold, weights)`."""
        for fold, own in enumerate(self.weights):
            leaves = leaf_weights(own)
            slopes = gradient(loss(fold, leaves), leaves)
            for name, slope in slopes.items():
                velocity = self._velocity[fold][name].mul_(_MOMENTUM).add_(slope)
                own[name] = own[name] - self.lr * velocity

    def state_dict(self) -> dict[str, Any]:
        """Return weights and velocities."""
        return {"weights": [dict(w) for w in self.weights], "velocity": list(self._velocity)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for own, stored in (
            (self.weights, state["weights"]),
            (self._velocity, state["velocity"]),
        ):
            for mine, theirs in zip(own, stored, strict=True):
                for name, value in theirs.items():
                    mine[name] = value.to(mine[name])


class Running:
    """A running mean m <- a m + (1 - a) x of tensors by name, the first x at first.

    Args:
        decay: a.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.mean: dict[str, Tensor] = {}

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Take in the next."""
        for name, value in tensors.items():
            own = self.mean.get(name)
            new = value.detach()
            self.mean[name] = new.clone() if own is None else own.lerp(new, 1 - self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the mean."""
        return dict(self.mean)

    def load_state_dict(self, state: Mapping[str, Tensor], like: Weights) -> None:
        """Restore what `state_dict` returned."""
        self.mean = {n: v.to(like[n]) for n, v in state.items()}


def preconditioned(
    direction: Mapping[str, Tensor], fisher: Mapping[str, Tensor], damping: float
) -> dict[str, Tensor]:
    """Return v / (F + damping mean(F)), F being a diagonal; v as it is where F is zero everywhere."""
    mean = torch.cat([f.flatten() for f in fisher.values()]).mean()
    if not float(mean) > 0:
        return dict(direction)
    return {n: v / (fisher[n] / mean + damping) for n, v in direction.items()}
