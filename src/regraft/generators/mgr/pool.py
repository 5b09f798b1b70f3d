"""Images chosen from a pool: the best of each class, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batches import PseudoBatch, ReplayedViews


def best_of_each_class(scores: Tensor, labels: Tensor, share: float) -> Tensor:
    """Return the rows of the best-scored share of each class, at least one, int64 [k], in order.

    Args:
        scores: [n], the larger, the better.
        labels: int64 [n].
        share: Share that is kept.
    """
    kept = []
    for k in labels.unique():
        rows = (labels == k).nonzero().flatten()
        count = max(1, round(share * len(rows)))
        kept.append(rows[scores[rows].argsort(descending=True, stable=True)[:count]])
    return torch.cat(kept).sort().values


@dataclass(frozen=True, eq=False)
class ChosenImages:
    """What was kept of a pool.

    Attributes:
        pixels: uint8 [k, C, H, W].
        labels: int64 [k].
        rows: Where in the pool each was, int64 [k].
        size: Images in the pool.
        seed: Seed of the pool's views, where image and view were chosen together.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor
    size: int
    seed: int | None

    def batch(self, n: int, draw: torch.Generator, views: ReplayedViews) -> PseudoBatch:
        """Return `n` of them, drawn with replacement, with fresh views or those of their own."""
        at = torch.randint(len(self.rows), (n,), generator=draw)
        clean = self.pixels[at.to(self.pixels.device)].float() / 255
        if self.seed is None:
            record = views.draw(n, draw)
        else:
            whole = views.draw(self.size, torch.Generator().manual_seed(self.seed))
            record = whole[self.rows[at]]
        labels = self.labels[at.to(self.labels.device)]
        return PseudoBatch(clean.new_empty(n, 0), labels, record, clean, views.apply(clean, record))

    def state_dict(self) -> dict[str, Any]:
        """Return its fields."""
        return dict(vars(self))

    @classmethod
    def of(cls, state: Mapping[str, Any], device: torch.device) -> ChosenImages:
        """Return what `state_dict` was taken of."""
        seed = state["seed"]
        return cls(
            state["pixels"].to(device),
            state["labels"],
            state["rows"],
            int(state["size"]),
            None if seed is None else int(seed),
        )
