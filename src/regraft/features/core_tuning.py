"""Core-tuning: a focal contrastive loss and a smooth classifier, both on mixed features.

References:
    Zhang et al., "Unleashing the power of contrastive self-supervised visual models via contrast-
    regularized fine-tuning", NeurIPS 2021, section 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.errors import InputError

from .contrastive import contrastive_loss, projection
from .method import Context, Method, Mode, one_hot, positive, wide
from .parallel import synced_call
from .samples import Samples


class CoreTuning(Method):
    """objective = mean over 3b of CE(head(g), q) + weight * focal contrastive loss of the same g.

    To the features f with labels y of a batch come two mixtures, with labels mixed alike:
    (1 - lam) f + lam f[perm], and lam f_hp + (1 - lam) f_hn, where hp is the least similar image
    of the same class (cosine) and hn the most similar of another; lam = max(Beta(a, a), floor) for
    each of the two. Positives are equal labels, pairs count by 1 - p_ij, and the projection
    d - d - `size` is trained too. The base loss is not used.

    Args:
        weight: eta.
        temperature: tau of the contrastive loss.
        size: Dimensions of the projection.
        alpha: a of the Beta distribution.
        floor: Least lam.
        seed: Seed of mixtures and projection.

    Raises:
        InputError: An argument out of its range.
    """

    replaces_loss = True
    takes_soft_targets = False
    takes_ignored = False
    projection: nn.Module

    def __init__(
        self,
        weight: float = 0.1,
        *,
        temperature: float = 0.07,
        size: int = 256,
        alpha: float = 1.0,
        floor: float = 0.8,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        positive(weight=weight)
        if not temperature > 0 or size < 1 or not alpha > 0 or not 0 <= floor <= 1:
            raise InputError(
                f"temperature={temperature}, size={size}, alpha={alpha}, floor={floor}: expected "
                "numbers above 0, and a floor in [0, 1]"
            )
        self.weight, self.temperature, self.size = weight, temperature, size
        self.alpha, self.floor = alpha, floor

    def _prepare(self, samples: Samples | None, steps: int | None, mode: Mode) -> None:
        self.projection = projection(self, self.size)

    def loss(self, features: Tensor, targets: Tensor, context: Context | None = None) -> Tensor:
        """Return the whole objective; the network's classifier is applied to the mixtures."""
        tap = self._tapped()
        f = features.to(wide(features))
        g, q = self.mixed(f, targets)
        logits = tap.head(g.to(_weight_type(tap.classifier, g)))
        smooth = F.cross_entropy(logits.to(g.dtype), q)
        z = F.normalize(synced_call(self.projection, g), dim=1)
        same = equal_rows(q)
        return smooth + self.weight * contrastive_loss(z, same, self.temperature, focal=True)

    def mixed(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [3b, d] and labels [3b, K]: the batch, mixtures at random, hard ones."""
        generator = self.generator("cpu")
        lam, hard = (max(_beta(self.alpha, generator), self.floor) for _ in range(2))
        perm = torch.randperm(len(features), generator=generator).to(features.device)
        q = one_hot(targets, self.num_classes, features.dtype)
        positive, negative = hard_pairs(features.detach(), targets)

        def all_three(t: Tensor) -> Tensor:
            random = (1 - lam) * t + lam * t[perm]
            return torch.cat([t, random, hard * t[positive] + (1 - hard) * t[negative]])

        return all_three(features), all_three(q)


def hard_pairs(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each image, the least similar of its class and the most similar of another, [b].

    An image alone in its class is its own positive; where there is no other class, the positive
    stands in for the negative.
    """
    unit = F.normalize(features, dim=1)
    cosine = unit @ unit.T
    same = targets[:, None] == targets[None]
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    alone = (same & ~itself).sum(1) == 0
    rows = torch.arange(len(features), device=features.device)
    if not len(rows):
        return rows, rows
    positive = cosine.masked_fill(~same | itself, torch.inf).argmin(1)
    positive = torch.where(alone, rows, positive)
    negative = cosine.masked_fill(same, -torch.inf).argmax(1)
    return positive, torch.where(same.all(1), positive, negative)


def equal_rows(q: Tensor) -> Tensor:
    """Return which rows of labels [n, K] are equal up to rounding, bool [n, n]."""
    _, group = (q * 2**16).round().unique(dim=0, return_inverse=True)
    return group[:, None] == group[None]


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Draw from Beta(alpha, alpha): uniform for 1, else as a ratio of gamma variables."""
    if alpha == 1.0:
        return torch.rand((), generator=generator, dtype=torch.float64).item()
    shape = torch.full((2,), alpha, dtype=torch.float64)
    x, y = torch._standard_gamma(shape, generator=generator).tolist()
    return x / (x + y) if x + y > 0 else 0.5


def _weight_type(classifier: nn.Module, like: Tensor) -> torch.dtype:
    parameter = next(classifier.parameters(), like)
    return parameter.dtype
