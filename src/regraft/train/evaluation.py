"""What a classifier gets right, class by class, and how far its probabilities can be trusted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .calibration import calibration_error, reliability

_MOST_BINS, _FEWEST_BINS, _IMAGES_A_BIN = 15, 5, 20
_Z = 1.959964


def evaluation(
    logits: Tensor, labels: Tensor, classes: Sequence[str], *, temperature: float = 1.0
) -> dict[str, Any]:
    """Return everything about the predictions on a labelled set, ready for JSON.

    Args:
        logits: [n, K].
        labels: int64 [n].
        classes: Names of the K classes.
        temperature: What logits are divided by.

    Returns:
        `images`; `accuracy` (percent) with its 95% interval (Wilson's), and `balanced_accuracy`
        (mean recall of the classes that occur); `loss` (nats), `calibration_error` (percent) and its
        bins, `reliability`, and the three at temperature 1, `uncalibrated`; `confusion` [K][K], rows
        the true class; `per_class`, with precision, recall and F1 in percent, None where there is
        nothing to divide by.
    """
    k = len(classes)
    predicted = logits.argmax(1)
    confusion = torch.bincount(labels * k + predicted, minlength=k * k).view(k, k)
    per_class: list[dict[str, Any]] = []
    for i, name in enumerate(classes):
        hits, there, said = (
            int(n) for n in (confusion[i, i], confusion[i].sum(), confusion[:, i].sum())
        )
        per_class.append(
            {
                "class": name,
                "images": there,
                "recall": 100.0 * hits / there if there else None,
                "precision": 100.0 * hits / said if said else None,
                "f1": 200.0 * hits / (there + said) if there + said else None,
            }
        )
    recalls = [row["recall"] for row in per_class if row["recall"] is not None]
    figures: dict[str, Any] = {
        "images": len(labels),
        "accuracy": 100.0 * (predicted == labels).double().mean().item(),
        "accuracy_interval": wilson(int((predicted == labels).sum()), len(labels)),
        "balanced_accuracy": sum(recalls) / len(recalls),
        "temperature": temperature,
        **_trust(logits, labels, temperature),
        "uncalibrated": _trust(logits, labels, 1.0),
        "confusion": confusion.tolist(),
        "per_class": per_class,
    }
    return figures


def wilson(right: int, images: int) -> list[float]:
    """Return the 95% interval of a share, in percent: p of |share - p| <= z sqrt(p (1 - p) / n).

    Args:
        right: Images that are classified right.
        images: n.
    """
    share, z2 = right / images, _Z**2
    middle = share + z2 / (2 * images)
    reach = _Z * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    ends = (100.0 * (middle + side * reach) / (1 + z2 / images) for side in (-1, 1))
    return [min(max(end, 0.0), 100.0) for end in ends]  # rounding may pass them


def confused(figures: dict[str, Any], most: int = 10) -> list[dict[str, Any]]:
    """Return the pairs of classes that are most often taken for each other: true, said, images.

    Args:
        figures: What `evaluation` returned.
        most: How many pairs at most.
    """
    names = [row["class"] for row in figures["per_class"]]
    pairs = [
        {"class": names[i], "taken_for": names[j], "images": n}
        for i, row in enumerate(figures["confusion"])
        for j, n in enumerate(row)
        if n and i != j
    ]
    return sorted(pairs, key=lambda pair: -pair["images"])[:most]


def _trust(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, Any]:
    scaled = logits.double() / temperature
    # With few images in a bin its share of right answers is noise, which counts as miscalibration.
    count = min(_MOST_BINS, max(_FEWEST_BINS, len(labels) // _IMAGES_A_BIN))
    bins = reliability(scaled.softmax(1), labels, bins=count)
    return {
        "loss": F.cross_entropy(scaled, labels).item(),
        "calibration_error": 100.0 * calibration_error(bins),
        "reliability": [dataclasses.asdict(b) for b in bins],
    }
