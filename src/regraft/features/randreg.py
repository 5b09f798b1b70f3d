"""Random feature regularisation: draw each feature to a random vector of a fixed distribution.

References:
    Zhong and Maki, "Regularizing CNN transfer learning with randomised regression", CVPR 2020.
    Yamaguchi et al., CVPR 2024, section 3 (uniform, normal, pretrained and class priors).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .method import Context, Method, Mode, one_of, positive, wide, without_ignored
from .samples import Samples
from .statistics import Spread, class_statistics

Prior = Literal["uniform", "normal", "source", "class"]
Distance = Literal["l2", "smooth_l1"]


class RandReg(Method):
    """loss = lambda_eff * mean over b and d of R(f_i - z_i), with z drawn anew at every step.

    z is U(0, 1) (`uniform`), N(0, 1) (`normal`), N(mu, diag sigma^2) with the pretrained features'
    statistics over all of the target's training images (`source`), or with those of the image's
    class (`class`: AdaRand whose means stand still). R is the square or the smooth L1 distance.
    The paper of 2020 also balances the gradients' norms of both objectives; here lambda is fixed.

    Args:
        kind: Distribution of z.
        weight: lambda.
        normalise: lambda_eff = lambda / mean_d Var(f) with the pretrained features' variance.
        distance: R.
        spread: `diagonal` or `isotropic` sigma, or `none`, of `class`.
        seed: Seed of z.

    Raises:
        InputError: An argument out of its range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        kind: Prior = "class",
        *,
        weight: float = 1.0,
        normalise: bool = True,
        distance: Distance = "l2",
        spread: Spread = "diagonal",
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        positive(weight=weight)
        one_of("kind", kind, get_args(Prior))
        one_of("distance", distance, get_args(Distance))
        one_of("spread", spread, get_args(Spread))
        self.kind: Prior = kind
        self.needs_pretrained = kind in ("source", "class")
        self.weight, self.normalise = weight, normalise
        self.distance: Distance = distance
        self.spread: Spread = spread

    def _prepare(self, samples: Samples | None, steps: int | None, mode: Mode) -> None:
        if not self.normalise and self.kind in ("uniform", "normal"):
            return
        statistics = class_statistics(
            self._tapped(), samples, num_classes=self.num_classes, mode=mode
        )
        self.variance = statistics.variance
        if self.kind == "source":
            self.register_buffer("mean", statistics.total_mean[None])
            self.register_buffer("std", statistics.total_std[None])
        elif self.kind == "class":
            self.register_buffer("mean", statistics.mean)
            self.register_buffer("std", statistics.spread(self.spread))

    def loss(self, features: Tensor, targets: Tensor, context: Context | None = None) -> Tensor:
        """Return lambda_eff * mean_{b,d} R(f - z)."""
        f = features.to(wide(features))
        z = self.reference(f, targets)
        distance = F.mse_loss if self.distance == "l2" else F.smooth_l1_loss
        if self.kind != "class":
            return distance(f, z) * self.effective_weight
        return without_ignored(distance(f, z, reduction="none"), targets) * self.effective_weight

    @torch.no_grad()
    def reference(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return z [b, d] for features [b, d] and classes [b] or probabilities [b, K]."""
        if self.kind == "uniform":
            generator = self.generator(features.device)
            return torch.empty_like(features).uniform_(generator=generator)
        noise = self.noise(features)
        if self.kind == "normal":
            return noise
        self._tapped()
        if self.kind == "source":
            return self.mean + self.std * noise
        if targets.dim() == 1:
            known = targets.clamp(min=0)
            return self.mean[known] + self.std[known] * noise
        p = targets.to(self.mean.dtype)
        return p @ self.mean + (p.square() @ self.std.square()).sqrt() * noise
