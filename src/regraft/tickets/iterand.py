"""IteRand: re-randomise pruned weights every few iterations while edge-popup searches.

References:
    Chijiwa et al., "Pruning randomly initialized neural networks with iterative randomization",
    NeurIPS 2021, algorithm 1 and section 3 (partial re-randomisation).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from regraft import streams
from regraft.errors import InputError

from .mask import Mask, named_masks


def rerandomize_(mask: Mask, scores: torch.Tensor, *, event: int, rate: float) -> int:
    """Redraw pruned weights in place: W <- W M + (1 - M) [(1 - B) W + B W'], B ~ Bernoulli(rate).

    W' is the tensor's stream at `event`, B a stream of its own; scores are untouched, and so are
    frozen positions.

    Args:
        mask: The masked weight.
        scores: Its scores.
        event: Number of this re-randomisation, from 1 on; each number at most once, in order.
        rate: Probability r that a pruned weight is redrawn.

    Returns:
        How many weights were redrawn.
    """
    source = mask.source
    chosen = streams.bernoulli(source.seed, f"{source.name}#redraw", event, source.numel, rate)
    pruned = torch.nonzero(~mask.kept(scores).reshape(-1).cpu()).reshape(-1)
    index = pruned[chosen[mask.positions(pruned)]]
    mask.redraw_(index, event)
    return index.numel()


class IteRand:
    """Re-randomise the pruned weights of an edge-popup search; call `step()` like a scheduler.

    With `step()` after every optimiser step, weights are redrawn before iteration `it` (from 0)
    whenever (it + 1) mod `every` = 0. `rate=0` is edge-popup, `rate=1` the naive full redraw.
    Each weight remembers at which event it was drawn, so that a checkpoint of the model alone
    rebuilds every weight.

    Args:
        model: A model masked by `edge_popup`.
        every: Iterations between two re-randomisations, K_per.
        rate: Probability that a pruned weight is redrawn, r.

    Raises:
        InputError: No masked weight, `every` below 1, or `rate` outside [0, 1].

    Example:
        >>> iterand = IteRand(model, every=300, rate=0.1)
        >>> for x, y in loader:
        ...     loss(model(x), y).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     iterand.step()
    """

    def __init__(self, model: nn.Module, *, every: int, rate: float = 0.1) -> None:
        if every < 1:
            raise InputError(f"every={every}: expected iterations between redraws, at least 1")
        if not 0.0 <= rate <= 1.0:
            raise InputError(f"rate={rate}: expected the probability of a redraw, in [0, 1]")
        self.model = model
        self.every = every
        self.rate = rate
        self.iteration = 0
        if not self._masks():
            raise InputError(
                "model has no edge-popup mask to re-randomise: call `edge_popup(model)` first"
            )

        # Kept from the start, so that copies made now (weight averages, say) have the same buffers.
        self.events = self._newest()

    def _masks(self) -> list[tuple[Mask, torch.Tensor]]:
        return [
            (mask, entry.original)
            for _, entry, mask in named_masks(self.model)
            if isinstance(mask, Mask)
        ]

    def _newest(self) -> int:
        """Return the newest event that a weight of the model was drawn at."""
        return max(int(mask.remember_draws_().max()) for mask, _ in self._masks())

    @torch.no_grad()
    def step(self) -> None:
        """Advance by one iteration; redraw if the next one asks for it."""
        self.iteration += 1
        if (self.iteration + 1) % self.every == 0 and self.rate > 0:
            # The model's state may have been loaded since, and this object's not: a weight that is
            # drawn from the event that it has already would stay as it is.
            self.events = max(self.events, self._newest()) + 1
            for mask, scores in self._masks():
                rerandomize_(mask, scores, event=self.events, rate=self.rate)

    def state_dict(self) -> dict[str, Any]:
        """Return iteration and event counters; the drawn weights are in the model's state."""
        return {"iteration": self.iteration, "events": self.events}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters."""
        self.iteration = int(state["iteration"])
        self.events = int(state["events"])
