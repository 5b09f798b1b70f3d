"""Losses on generated images, one number an image: consistency of features, and the controls' losses.

References:
    Yamaguchi et al., "Regularizing neural networks with meta-learning generative models", NeurIPS 2023
    (pseudo consistency regularisation). Xie et al., "Unsupervised data augmentation for consistency
    training", NeurIPS 2020 (the loss without labels).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.config.mgr import Branch, Distance, PseudoLoss

from .head import LearningHead
from .passes import Outputs, Passes, Weights

_TEMPERATURE, _CONFIDENT = 0.4, 0.8

CLEAN = frozenset(("pcr", "ce", "head", "self_training"))
"""Losses that look at the generated images as they are."""

STRONG = frozenset(("pcr", "strong_ce", "self_training"))
"""Losses that look at strong views of them."""

LABELS = frozenset(("ce", "strong_ce"))
"""Losses that take the class of a generated image for one of the network's."""


def consistency(clean: Tensor, strong: Tensor, distance: Distance = "normalised") -> Tensor:
    """Return how far the features of two views of each image are apart, [b].

    `squared`: ||a - b||^2, summed over features. `normalised`: the same of a/||a|| and b/||b||, which is
    2 - 2 cos(a, b), in [0, 4], whatever the network's scale is.

    Args:
        clean: Features of the images, [b, d].
        strong: Features of their strong views, [b, d].
        distance: Which.
    """
    if distance == "normalised":
        clean, strong = F.normalize(clean, dim=1), F.normalize(strong, dim=1)
    return (clean - strong).square().sum(1)


class ImageLosses:
    """(weights, images, views) -> a loss for each generated image.

    Args:
        passes: The network.
        kind: Which loss; `CLEAN` and `STRONG` say what it looks at.
        distance: The distance of `pcr`.
        gradient: Which branch of `pcr` has a gradient to the weights. The other one is computed with
            the same weights taken as numbers; its gradient to the images stays.
        head: The classifier that generated images have to themselves, for `head`.
    """

    def __init__(
        self,
        passes: Passes,
        kind: PseudoLoss = "pcr",
        *,
        distance: Distance = "normalised",
        gradient: Branch = "both",
        head: LearningHead | None = None,
    ) -> None:
        self.passes, self.kind, self.distance, self.gradient = passes, kind, distance, gradient
        self.head = head
        by_kind: dict[str, Callable[..., Tensor]] = {
            "pcr": self._pcr,
            "ce": lambda call, clean, strong, y: _cross_entropy(call(clean).logits, y),
            "strong_ce": lambda call, clean, strong, y: _cross_entropy(call(strong).logits, y),
            "head": self._own_head,
            "self_training": self._self_training,
        }
        self._loss = by_kind[kind]

    def __call__(
        self,
        weights: Weights | None,
        clean: Tensor,
        strong: Tensor,
        labels: Tensor,
        *,
        update: bool = False,
    ) -> Tensor:
        """Return the losses, [b].

        Args:
            weights: Weights of the network, its own if None.
            clean: Generated images as the network takes them, [b, C, H, W].
            strong: Their strong views, likewise.
            labels: Their classes, int64 [b].
            update: Keep BatchNorm's statistics where the policy is `update`.
        """

        def call(images: Tensor, *, constant: bool = False) -> Outputs:
            used = weights
            if constant:
                used = {n: w.detach() for n, w in (weights or self.passes.weights()).items()}
            return self.passes(images, used, update=update and not constant)

        if self.head is not None:
            self.head.listen(weights is None)  # at other weights it does not learn
        return self._loss(call, clean, strong, labels)

    def _pcr(
        self, call: Callable[..., Outputs], clean: Tensor, strong: Tensor, _: Tensor
    ) -> Tensor:
        if self.gradient == "both":
            a, b = call(torch.cat((clean, strong))).features.chunk(2)
        else:
            a = call(clean, constant=self.gradient == "strong").features
            b = call(strong, constant=self.gradient == "clean").features
        return consistency(a, b, self.distance)

    def _own_head(
        self, call: Callable[..., Outputs], clean: Tensor, _: Tensor, labels: Tensor
    ) -> Tensor:
        if self.head is None:
            raise RuntimeError("the loss 'head' has no head")
        return _cross_entropy(self.head(call(clean).features), labels)

    def _self_training(
        self, call: Callable[..., Outputs], clean: Tensor, strong: Tensor, _: Tensor
    ) -> Tensor:
        """1[max p > 0.8] CE(softmax(logits / 0.4), p of the strong view), the first without a gradient."""
        with torch.no_grad():
            logits = call(clean, constant=True).logits
            sure = logits.softmax(1).amax(1) > _CONFIDENT
            targets = (logits / _TEMPERATURE).softmax(1)
        losses = F.cross_entropy(call(strong).logits, targets, reduction="none")
        return losses * sure.to(losses.dtype)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")
