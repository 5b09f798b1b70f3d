"""Whether the permutation helps: agreement on batches that it was not matched on, and accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from regraft.errors import RegraftError
from regraft.symmetry.transfer.agreement import agreement

from .config import TransferConfig
from .networks import Networks
from .steps import Steps

_DRAWS = 4
"""Pairs of gradients that the agreement is taken over."""


def agreement_of(
    networks: Networks, config: TransferConfig, steps: Steps
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return how alike both networks' gradients are on validation images, permuted and not.

    Returns:
        The agreement, None without data and where nothing is permuted; and notes, where it could not
        be measured, which is no reason to end a transfer that is through.
    """
    data = networks.gradients("validation")
    if data is None or config.match == "naive" or not len(networks.spec):
        return None, []
    try:
        measured = agreement(
            networks.trajectory,
            networks.target,
            networks.spec,
            data,
            steps.last.permutation,
            draws=_DRAWS,
            scale=config.factor,
        )
    except RegraftError as error:
        return None, [f"the agreement of gradients was not measured: {error}"]
    return measured.to_dict(), []


def against_naive(
    networks: Networks, config: TransferConfig, steps: Mapping[str, Steps]
) -> dict[str, Any] | None:
    """Return by how much the transferred network is above the naive one on validation images.

    Returns:
        Accuracies (percent), their difference (points) with the 95% bound of its sampling error, the
        images, and whether it is above; None without data, and for the naive transfer itself.
    """
    images = networks.images
    if images is None or config.match == "naive":
        return None
    ends = [steps[method].start(config.start).weights for method in (config.match, "naive")]
    right = [images.right(networks.model, state) for state in ends]
    difference, error = paired(right[0], right[1])
    return {
        "accuracy": 100 * right[0].double().mean().item(),
        "naive": 100 * right[1].double().mean().item(),
        "difference": difference,
        "error": error,
        "images": len(right[0]),
        "part": images.chosen_on,
        "above": difference > error,
    }


def paired(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Return the difference of two accuracies on the same images, and 1.96 standard errors, in points.

    With d_i = +1 where only the first is right, -1 where only the other is: their mean, and
    1.96 sqrt((Σ d_i² / n - mean²) / n).

    Args:
        one: Which images the first network classifies right, bool [n].
        other: The other's, bool [n].
    """
    d = one.double() - other.double()
    mean = d.mean().item()
    spread = max((d * d).mean().item() - mean**2, 0.0)
    return 100 * mean, 196 * math.sqrt(spread / len(d))
