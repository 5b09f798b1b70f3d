"""LP-FT: fit a linear probe first, then fine-tune from it; and the probe alone.

References:
    Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution",
    ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from regraft.errors import InputError

from .method import Method, Mode, NormMode, one_of
from .norm import freeze_batchnorm_
from .probe import GRID, collect, fit_probe
from .samples import Samples, check_labels
from .tap import head_size


class LPFT(Method):
    """The classifier starts as a logistic regression on the pretrained features.

    Then everything is fine-tuned, with BatchNorm in evaluation mode as in the paper, so that
    training starts from the features that the probe was fitted to. Learning rates a tenth of those
    for a random classifier are right. Where the images are far from the source's, its BatchNorm
    statistics fit badly and training diverges early: take `norm="train"`.

    Args:
        strengths: Inverse weights of the probe's L2 penalty to choose from, see `fit_probe`.
        holdout: Share of each class that chooses.
        norm: `eval` keeps BatchNorm in evaluation mode from now on, and fits the probe to features
            in that mode; `train` leaves it as it is, and takes `prepare`'s.
        seed: Seed of the choice of held-out images.

    Raises:
        InputError: An argument out of its range; a classifier that is not linear.
    """

    needs_pretrained = True
    rate_scale = 0.1  # the classifier is right already
    trains_backbone: bool = True

    def __init__(
        self,
        *,
        strengths: Sequence[float] = GRID,
        holdout: float = 0.2,
        norm: NormMode = "eval",
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        one_of("norm", norm, get_args(NormMode))
        self.strengths, self.holdout = tuple(strengths), holdout
        self.norm: NormMode = norm
        self.strength = 1.0

    def _prepare(self, samples: Samples | None, steps: int | None, mode: Mode) -> None:
        tap = self._tapped()
        if head_size(tap.classifier) is None:
            raise InputError(
                f"the classifier {tap.name!r} is a {type(tap.classifier).__name__}: a linear probe "
                "can only start a linear one"
            )
        features, labels = collect(tap, samples, mode="eval" if self.norm == "eval" else mode)
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
        if self.norm == "eval":
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
