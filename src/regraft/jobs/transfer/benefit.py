"""Whether the permutation helps: agreement on batches that it was not matched on, and accuracy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .arms import Along, Arm

_DRAWS = 4
"""Pairs of gradients that the agreement is taken over."""


def agreement_of(along: Along, arm: Arm) -> tuple[dict[str, Any] | None, list[str]]:
    """Return how alike both networks' gradients are on validation images, permuted and not.

    Returns:
        The agreement, None without data and where nothing is permuted; and notes, where it could not
        be measured, which is no reason to end a transfer that is through.
    """
    from regraft.errors import RegraftError
    from regraft.symmetry.transfer.agreement import agreement

    data = along.gradients("validation")
    if data is None or along.asked.by == "naive" or not len(along.spec):
        return None, []
    try:
        found = agreement(
            along.trajectory,
            along.target,
            along.spec,
            data,
            arm.start("final").permutation,
            draws=_DRAWS,
            scale=along.asked.scale,
        )
    except RegraftError as error:
        return None, [f"the agreement of gradients was not measured: {error}"]
    return found.to_dict(), []


def against_naive(along: Along, arms: dict[str, Arm]) -> dict[str, Any] | None:
    """Return by how much the transferred network is above the naive one on validation images.

    Returns:
        Accuracies (percent), their difference (points) with the 95% bound of its sampling error, the
        images, and whether it is above; None without data, and for the naive transfer itself.
    """
    asked, bench = along.asked, along.bench
    if not along.given.data or asked.by == "naive":
        return None
    right = [bench.right(arms[by].start(asked.start).weights) for by in (asked.by, "naive")]
    difference, error = paired(right[0], right[1])
    return {
        "accuracy": 100 * right[0].double().mean().item(),
        "naive": 100 * right[1].double().mean().item(),
        "difference": difference,
        "error": error,
        "images": len(right[0]),
        "part": bench.chosen_on,
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


def notes_of(card: dict[str, Any]) -> list[str]:
    """Return what the user should know of a transfer.

    Args:
        card: The card, with `spec`, `steps`, `agreement` and `against_naive`.
    """
    last, notes = card["steps"][-1], []
    agreed, measured = card["agreement"], card["against_naive"]
    if not card["spec"]["groups"]:
        notes.append(
            "nothing in this architecture can change places, so that every method is the naive transfer: "
            "spec.json says what pins each axis"
        )
    elif agreed is not None and agreed["gain"] < CLOSER:
        notes.append(
            "the permutation brings the two networks no closer: on batches that it was not matched on, "
            f"their gradients have a cosine of {agreed['plain']:.3f} as they are and of "
            f"{agreed['cosine']:.3f} permuted; expect no more than the naive transfer gives"
        )
    if card["spec"]["groups"] and measured is not None and not measured["above"]:
        notes.append(
            "the transferred network is not above the naive one by more than the sampling error: "
            f"{measured['accuracy']:.1f}% against {measured['naive']:.1f}% of {measured['images']} "
            f"{measured['part']} images, {measured['difference']:+.1f} ± {measured['error']:.1f} points"
        )
    if last["dead"]:
        notes.append(
            f"{len(last['dead'])} groups have no gradients in one of the networks and stay in place: "
            f"{', '.join(last['dead'][:3])}"
        )
    if card["data"] is None:
        notes.append(
            "without --data nothing was measured, so that it is not known whether the permutation helps, "
            "and BatchNorm statistics are the source's"
        )
    return notes


CLOSER = 0.05
"""Gain of the cosine on batches that were not matched from which on the networks count as closer."""
