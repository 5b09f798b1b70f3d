"""Feature-norm penalty: keep features small.

References:
    Yamaguchi et al., CVPR 2024, section 5 (the baseline "FNP").
"""

from __future__ import annotations

from torch import Tensor

from .method import Context, Method, Mode, positive, wide
from .samples import Samples
from .statistics import class_statistics


class FeatureNorm(Method):
    """loss = lambda_eff * mean over b and d of f_i^2.

    Args:
        weight: lambda.
        normalise: lambda_eff = lambda / mean_d Var(f) with the pretrained features' variance.

    Raises:
        InputError: A negative weight.
    """

    def __init__(self, weight: float = 0.1, *, normalise: bool = True, seed: int = 0) -> None:
        super().__init__(seed=seed)
        positive(weight=weight)
        self.weight, self.normalise = weight, normalise

    def _prepare(self, samples: Samples | None, steps: int | None, mode: Mode) -> None:
        if self.normalise:
            statistics = class_statistics(
                self._tapped(), samples, num_classes=self.num_classes, mode=mode
            )
            self.variance = statistics.variance

    def loss(self, features: Tensor, targets: Tensor, context: Context | None = None) -> Tensor:
        """Return lambda_eff * mean_{b,d} f^2; targets are not looked at."""
        return features.to(wide(features)).square().mean() * self.effective_weight
