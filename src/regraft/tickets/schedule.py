"""Extras of later papers: sparsity that anneals during the search, and a penalty on the scores.

References:
    Sreenivasan et al., "Rare gems: finding lottery tickets at initialization", NeurIPS 2022
    (penalty; geometric pruning).
    Huang et al., "You can have better graph neural networks by not training weights at all",
    LoG 2022 (linear ramp from 0 to s over the first half of training).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.errors import InputError

from .mask import Mask, named_masks
from .select import pruned_count


class SparsitySchedule:
    """Move the sparsity of every edge-popup mask from `start` to its own target over `steps`.

    With t = min(step / steps, 1): `linear` s = start + (target - start) t; `cubic`
    s = target + (start - target)(1 - t)^3; `geometric` 1 - s = (1 - start)^(1 - t) (1 - target)^t,
    the same share of the survivors pruned at each step. Call `step()` after every optimiser step.
    Where weights are frozen, the ramp starts at the nearest sparsity that the free ones can give.

    Args:
        model: A model masked by `edge_popup`; its sparsities now are the targets.
        steps: Length of the ramp in optimiser steps.
        start: Sparsity at the first step, moved into [p, 1 - l] where shares p and l are frozen.
        shape: Law of the ramp.

    Raises:
        InputError: No edge-popup mask, `steps` below 1, `start` outside [0, 1], or a geometric ramp
            to a sparsity of 1.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        start: float = 0.0,
        shape: Literal["linear", "cubic", "geometric"] = "linear",
    ) -> None:
        if steps < 1:
            raise InputError(f"steps={steps}: expected the length of the ramp, at least 1")
        pruned_count(1, start)
        self.masks = [m for _, _, m in named_masks(model) if isinstance(m, Mask)]
        if not self.masks:
            raise InputError(
                "model has no edge-popup mask to anneal: call `edge_popup(model)` first"
            )
        self.targets = [m.sparsity for m in self.masks]
        self.starts = [_reachable(m, self.masks, start) for m in self.masks]
        if shape == "geometric" and 1.0 in (*self.starts, *self.targets):
            raise InputError("shape='geometric': the kept share never reaches 0; use 'cubic'")
        self.steps, self.shape = steps, shape
        self.iteration = 0
        self._apply()

    def step(self) -> None:
        """Advance by one optimiser step."""
        self.iteration += 1
        self._apply()

    def _apply(self) -> None:
        t = min(self.iteration / self.steps, 1.0)
        for mask, start, target in zip(self.masks, self.starts, self.targets, strict=True):
            if self.shape == "linear":
                mask.sparsity = start + (target - start) * t
            elif self.shape == "cubic":
                mask.sparsity = target + (start - target) * (1 - t) ** 3
            else:
                mask.sparsity = 1 - (1 - start) ** (1 - t) * (1 - target) ** t
            if t == 1.0:
                mask.sparsity = target

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the targets."""
        return {"iteration": self.iteration, "targets": self.targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore step and targets, and set the sparsities they imply."""
        self.iteration = int(state["iteration"])
        self.targets = [float(t) for t in state["targets"]]
        self._apply()


def _reachable(mask: Mask, masks: list[Mask], sparsity: float) -> float:
    """Return the sparsity nearest to `sparsity` that what is frozen leaves within reach."""
    group = [mask] if mask.scope is None else [m for m in masks if m.scope is mask.scope]
    patterns = [m.pattern for m in group if m.pattern is not None]
    n = sum(m.source.numel for m in group)
    low = sum(p.pruned for p in patterns) / n
    high = 1 - sum(p.locked for p in patterns) / n
    return min(max(sparsity, low), high)


def score_penalty(model: nn.Module) -> Tensor:
    """Return the sum of squared scores over all masks, a 0-dim tensor: add lambda times it.

    Rare gems uses lambda = 1e-4 with scores in [0, 1].

    Raises:
        InputError: The model has no edge-popup mask.
    """
    squares = [e.original.square().sum() for _, e, m in named_masks(model) if isinstance(m, Mask)]
    if not squares:
        raise InputError("model has no edge-popup mask: call `edge_popup(model)` first")
    return torch.stack(squares).sum()
