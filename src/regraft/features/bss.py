"""BSS: shrink the smallest singular values of a batch's features.

References:
    Chen et al., "Catastrophic forgetting meets negative transfer: batch spectral shrinkage for safe
    transfer learning", NeurIPS 2019, equation 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.errors import InputError

from .method import Context, Method, positive, wide


class BSS(Method):
    """loss = weight * sum over the k smallest singular values of F [b, d] of their squares.

    Args:
        weight: eta.
        smallest: k.

    Raises:
        InputError: A negative weight or k below 1.
    """

    def __init__(self, weight: float = 1e-3, *, smallest: int = 1, seed: int = 0) -> None:
        super().__init__(seed=seed)
        positive(weight=weight)
        if smallest < 1:
            raise InputError(
                f"smallest={smallest}: expected a number of singular values, at least 1"
            )
        self.weight, self.smallest = weight, smallest

    def loss(self, features: Tensor, targets: Tensor, context: Context | None = None) -> Tensor:
        """Return the penalty; targets are not looked at, and a batch has min(b, d) values."""
        values = torch.linalg.svdvals(features.to(wide(features)))
        return self.weight * values[-self.smallest :].square().sum()
