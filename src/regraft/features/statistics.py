"""Means and spreads of a pretrained network's features on the target's training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.models.classifier import call

from .parallel import sum_
from .samples import Samples, at_least_two, check_labels, preserved
from .tap import Tap

Spread = Literal["diagonal", "isotropic", "none"]


@dataclass(frozen=True)
class Statistics:
    """Statistics of features, in float32 (float64 for a float64 network).

    Attributes:
        mean: Mean of each class [K, d]; that of all images for a class without any.
        std: Standard deviation of each class and dimension [K, d]; the pooled one within classes
            for a class with one image, and 0 where every class has one.
        counts: Images of each class [K].
        total_mean: Mean of all images [d].
        total_std: Standard deviation of all images [d].
    """

    mean: Tensor
    std: Tensor
    counts: Tensor
    total_mean: Tensor
    total_std: Tensor

    @property
    def variance(self) -> float:
        """Mean over dimensions of the variance over all images: the squared scale of features."""
        return float(self.total_std.double().square().mean())

    def spread(self, kind: Spread) -> Tensor:
        """Return the standard deviations [K, d] (diagonal), [K, 1] (isotropic) or zeros [K, 1].

        The isotropic one is the square root of the variance's mean over dimensions.
        """
        if kind == "diagonal":
            return self.std.clone()
        if kind == "isotropic":
            return self.std.square().mean(1, keepdim=True).sqrt()
        return torch.zeros_like(self.std[:, :1])


def class_statistics(
    tap: Tap, samples: Samples | None, *, num_classes: int = 0, mode: str = "train"
) -> Statistics:
    """Return class statistics of tapped features from one pass over the training images.

    mu_k = mean and sigma_k = standard deviation (with n_k - 1) of the features of class k, over all
    processes of a distributed run, without images of a class below 0. Memory is a few K x d arrays,
    whatever the number of images.

    Args:
        tap: Tap on the network.
        samples: The training images.
        num_classes: K; found from the labels where 0.
        mode: The mode to take them in, see `Method.prepare`.

    Raises:
        InputError: No images, labels outside [0, K), one class, or features that are not finite or
            all equal.
    """
    if samples is None:
        raise InputError("loader is missing: this method takes statistics of the training images")
    if not num_classes:
        raise InputError(
            f"the classifier {tap.name!r} does not tell how many classes there are: pass num_classes="
        )
    sums: Tensor | None = None
    squares = counts = torch.empty(0)
    dtype = torch.float32
    with preserved(tap.model, mode):
        for inputs, labels in at_least_two(samples):
            call(tap.model, inputs)
            features, labels = tap.take().features[labels >= 0], labels[labels >= 0]
            check_labels(labels, num_classes)
            if sums is None:
                dtype = torch.promote_types(features.dtype, torch.float32)
                kind = torch.float32 if features.device.type == "mps" else torch.float64
                sums = features.new_zeros(num_classes, features.shape[1], dtype=kind)
                squares, counts = torch.zeros_like(sums), torch.zeros_like(sums[:, 0])
            f = features.to(sums.dtype)
            sums.index_add_(0, labels, f)
            squares.index_add_(0, labels, f.square())
            counts += torch.bincount(labels, minlength=num_classes)
    if sums is None:
        raise InputError("loader gives no batch: expected the target's training data")
    sum_(sums, squares, counts)
    return _finish(sums, squares, counts, dtype)


def _finish(sums: Tensor, squares: Tensor, counts: Tensor, dtype: torch.dtype) -> Statistics:
    if not (sums.isfinite().all() and squares.isfinite().all()):
        raise InputError(
            "the network's features are not finite on the training images: check its weights and "
            "the images' normalisation, and take statistics outside of float16"
        )
    if int((counts > 0).sum()) < 2:
        raise InputError("the training images have one class: expected two classes or more")
    total, n = sums.sum(0), counts.sum()
    total_mean = total / n
    total_var = (squares.sum(0) - total * total_mean).clamp_(min=0) / (n - 1)
    if not total_var.max() > 1e-12 * (squares.sum(0) / n).max():
        raise InputError(
            "the network's features are equal for all training images: check its weights, or tap "
            "another module with classifier='...'"
        )
    some = counts.clamp(min=1)[:, None]
    mean = sums / some
    within = (squares - sums * mean).clamp_(min=0)
    freedom = (n - (counts > 0).sum()).clamp(min=1)
    pooled = within.sum(0) / freedom
    several = (counts > 1)[:, None]
    var = torch.where(several, within / (some - 1).clamp(min=1), pooled)
    mean = torch.where((counts > 0)[:, None], mean, total_mean)
    return Statistics(
        mean.to(dtype),
        var.sqrt().to(dtype),
        counts.to(torch.int64),
        total_mean.to(dtype),
        total_var.sqrt().to(dtype),
    )
