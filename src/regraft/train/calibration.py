"""Whether a classifier's probabilities are true, and one number that makes them truer.

References:
    Guo et al., "On calibration of modern neural networks", ICML 2017, sections 2 (reliability,
    expected calibration error) and 4.2 (temperature scaling).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.errors import InputError

_LOWEST, _HIGHEST = 0.05, 20.0


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the T in [0.05, 20] of the least mean cross-entropy of logits / T.

    The cross-entropy is convex in 1 / T. Where every image is right it falls for ever as T does,
    which says nothing about other images: then T is not taken below 1.

    Args:
        logits: [n, K].
        labels: int64 [n].

    Raises:
        InputError: There are no images, or logits that are not finite.
    """
    logits = logits.double()
    if not len(labels) or not bool(logits.isfinite().all()):
        raise InputError("logits for a temperature: expected finite ones of at least one image")
    all_right = bool((logits.argmax(1) == labels).all())
    low, high = 1.0 / _HIGHEST, 1.0 if all_right else 1.0 / _LOWEST
    # Ternary search on a convex function: 100 rounds leave 1e-17 of the interval.
    for _ in range(100):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        if F.cross_entropy(logits * a, labels) <= F.cross_entropy(logits * b, labels):
            high = b
        else:
            low = a
    return 2.0 / (low + high)


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Images whose highest probability lies in (low, high]: how many, how sure, how often right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> list[Bin]:
    """Return the bins of equal width that hold images.

    Args:
        probabilities: [n, K].
        labels: int64 [n].
        bins: Number of bins over [0, 1].

    Raises:
        InputError: Fewer than one bin.
    """
    if bins < 1:
        raise InputError(f"bins={bins}: expected at least 1")
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = torch.bincount(place, minlength=bins)
    sums = [torch.bincount(place, weights=w, minlength=bins) for w in (confidence, right)]
    return [
        Bin(
            low=i / bins,
            high=(i + 1) / bins,
            count=n,
            confidence=float(sums[0][i]) / n,
            accuracy=float(sums[1][i]) / n,
        )
        for i, n in enumerate(counts.tolist())
        if n
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Return the expected calibration error: sum over bins of n_b / n * |accuracy - confidence|."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / max(total, 1)
