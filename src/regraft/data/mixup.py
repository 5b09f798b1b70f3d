"""Mixup: training batches whose images and labels are convex combinations of two.

References:
    Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch.nn.functional as F
from scipy.special import betaincinv
from torch import Tensor

from regraft import streams
from regraft.errors import InputError
from regraft.protocols import BatchSource


class Mixup:
    """Batches of another source, mixed: x <- lam x + (1 - lam) x', labels alike, lam ~ Beta(a, a).

    One lam a batch; the partner x' of an image is the one before it in its batch, whose order is
    random already. lam depends on nothing but seed, epoch and place of the batch, so resuming is
    exact. Follows `regraft.protocols.BatchSource`; labels become probabilities [b, K].

    Args:
        source: The batches to mix.
        alpha: a; a small one mixes little.
        num_classes: K.
        seed: Seed of the mixing.

    Raises:
        InputError: alpha is not above 0.
    """

    def __init__(self, source: BatchSource, *, alpha: float, num_classes: int, seed: int) -> None:
        if not 0.0 < alpha < float("inf"):
            raise InputError(f"mixup={alpha}: expected a finite number above 0, e.g. 0.2")
        self.source, self.alpha, self.num_classes, self.seed = source, alpha, num_classes, seed

    def __len__(self) -> int:
        return len(self.source)

    def batches(
        self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield (images [b, C, H, W], probabilities float32 [b, K], size of the global batch)."""
        words = streams.raw(self.seed, "mixup", epoch, len(self)) >> np.uint64(11)
        uniform = (words.astype(np.float64) + 0.5) * 2.0**-53
        shares = betaincinv(self.alpha, self.alpha, uniform)
        batches = self.source.batches(epoch, start=start, rank=rank, world=world)
        for share, (x, y, size) in zip(shares[start:].tolist(), batches, strict=True):
            p = F.one_hot(y, self.num_classes).to(x.dtype)
            yield x.lerp(x.roll(1, 0), 1 - share), p.lerp(p.roll(1, 0), 1 - share), size
