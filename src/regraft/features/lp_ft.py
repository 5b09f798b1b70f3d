"""LP-FT: fit a linear probe first, then fine-tune from it; and the probe alone.

References:
    Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution",
    ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regraft.errors import InputError

from .method import Method, Mode
from .norm import freeze_batchnorm_
from .probe import GRID, collect, fit_probe
from .samples import Samples, check_labels
from .tap import head_size


class LPFT(Method):
    """The classifier starts as a logistic regression on the pretrained features.

    Then everything is fine-tuned, with BatchNorm in evaluation mode as in the paper, so that
    training starts from the features that the probe was fitted to. Lower learning rates than for a
    random classifier are right.

    Args:
        strengths: Inverse weights of the probe's L2 penalty to choose from, see `fit_probe`.
        holdout: Share of each class that chooses.
        freeze_norm: Keep BatchNorm in evaluation mode from now on; the probe is fitted to features
            in that mode, or else in `prepare`'s.
        seed: Seed of the choice of held-out images.

    Raises:
        InputError: An argument out of its range; a classifier that is not linear.
    """

    trains_backbone: bool = True

    def __init__(
        self,
        *,
        strengths: Sequence[float] = GRID,
        holdout: float = 0.2,
        freeze_norm: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.strengths, self.holdout, self.freeze_norm = tuple(strengths), holdout, freeze_norm
        self.strength = 1.0

    def _prepare(self, samples: Samples | None, steps: int | None, mode: Mode) -> None:
        tap = self._tapped()
        if head_size(tap.classifier) is None:
            raise InputError(
                f"the classifier {tap.name!r} is a {type(tap.classifier).__name__}: a linear probe "
                "can only start a linear one"
            )
        features, labels = collect(tap, samples, mode="eval" if self.freeze_norm else mode)
        check_labels(labels, self.num_classes)
        weight, bias, self.strength = fit_probe(
            features,
            labels,
            self.num_classes,
            strengths=self.strengths,
            holdout=self.holdout,
            seed=self.seed,
        )
        self._start(weight, bias)
        if self.freeze_norm:
            freeze_batchnorm_(tap.model, affine=not self.trains_backbone)
        if not self.trains_backbone:
            tap.model.requires_grad_(False)
            tap.classifier.requires_grad_(True)

    @torch.no_grad()
    def _start(self, weight: Tensor, bias: Tensor) -> None:
        classifier = self._tapped().classifier
        own: Tensor = classifier.weight  # pyrefly: ignore
        own.copy_(weight.reshape(own.shape))
        if isinstance(classifier.bias, Tensor):
            classifier.bias.copy_(bias)


class LinearProbe(LPFT):
    """The logistic regression alone: only the classifier takes gradients."""

    trains_backbone = False
