"""What a classifier gets right, class by class, and how far its probabilities can be trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .calibration import calibration_error, reliability


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
        `images`; `accuracy` (percent) and `balanced_accuracy` (mean recall of the classes that
        occur); `loss` (nats) and `calibration_error`, and both `uncalibrated` (temperature 1);
        `reliability`, the bins of each; `confusion` [K][K], rows the true class; `per_class`, with
        precision, recall and F1 in percent, None where there is nothing to divide by.
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
    found: dict[str, Any] = {
        "images": len(labels),
        "accuracy": 100.0 * (predicted == labels).double().mean().item(),
        "balanced_accuracy": sum(recalls) / len(recalls),
        "temperature": temperature,
        **_trust(logits, labels, temperature),
        "uncalibrated": _trust(logits, labels, 1.0),
        "confusion": confusion.tolist(),
        "per_class": per_class,
    }
    return found


def confused(found: dict[str, Any], most: int = 10) -> list[dict[str, Any]]:
    """Return the pairs of classes that are most often taken for each other: true, said, images.

    Args:
        found: What `evaluation` returned.
        most: How many pairs at most.
    """
    names = [row["class"] for row in found["per_class"]]
    pairs = [
        {"class": names[i], "taken_for": names[j], "images": n}
        for i, row in enumerate(found["confusion"])
        for j, n in enumerate(row)
        if n and i != j
    ]
    return sorted(pairs, key=lambda pair: -pair["images"])[:most]


def _trust(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, Any]:
    scaled = logits.double() / temperature
    bins = reliability(scaled.softmax(1), labels)
    return {
        "loss": F.cross_entropy(scaled, labels).item(),
        "calibration_error": 100.0 * calibration_error(bins),
        "reliability": [dataclasses.asdict(b) for b in bins],
    }
