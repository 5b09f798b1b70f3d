"""How a network-level share of kept weights is spread over its layers.

All three laws besides the uniform one have a single free number t that every layer's density rises
with, so one bisection serves them all and densities are exactly monotone in the share asked for.

References:
    Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science", Nature Communications 2018 (Erdős-Rényi); Evci et
    al., "Rigging the lottery: making all tickets winners", ICML 2020, section 3 (its kernel form).
    Price and Tanner, "Dense for the price of sparse", ICML 2021 (equal edges per layer).
    Vysogorets and Kempe, "Connectivity matters: neural network pruning through the lens of
    effective sparsity", JMLR 2023 (ideal gas quotas).
    Otsuka et al., "Partially frozen random networks contain compact strong lottery tickets",
    TMLR 2025 (allocations of the frozen weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from regraft.errors import InputError

Allocation = Literal["uniform", "erk", "epl", "igq"]
ALLOCATIONS: tuple[str, ...] = get_args(Allocation)


def densities(
    shapes: Sequence[tuple[int, ...]], density: float, allocation: Allocation
) -> list[float]:
    """Return the density d_l in [0, 1] of each layer, with sum_l d_l n_l = density * sum_l n_l.

    * `uniform`: d_l = density.
    * `erk` (Erdős-Rényi kernel): d_l = min(1, t * sum(dims_l) / prod(dims_l)).
    * `epl` (edges per layer): d_l = min(1, t / n_l), equally many weights in each layer.
    * `igq` (ideal gas): d_l = 1 / (f n_l + 1) with f = 1 / t; no layer saturates.

    n_l = prod(dims_l), and t is the number that meets the sum: what saturated layers cannot take
    goes to the others. Every d_l rises with `density`, down to the last bit, and is exactly 0 and 1
    at its ends.

    Args:
        shapes: The dimensions of each layer's weight: out, in, and those of a convolution's kernel.
        density: Share of all weights, in [0, 1].
        allocation: The law.

    Raises:
        InputError: No layers, a layer without weights, a density outside [0, 1], or an unknown law.
    """
    if allocation not in ALLOCATIONS:
        raise InputError(f"allocation={allocation!r}: expected one of {', '.join(ALLOCATIONS)}")
    if not isinstance(density, (int, float)) or not 0.0 <= density <= 1.0:
        raise InputError(f"density={density}: expected a share of all weights, in [0, 1]")
    if not shapes:
        raise InputError("shapes is empty: give the shape of one weight or more")
    for shape in shapes:
        if not shape or min(shape) < 1:
            raise InputError(
                f"shapes has {tuple(shape)}, a tensor without weights: leave out empty layers and "
                "give every dimension as a number of at least 1"
            )
    sizes = [math.prod(shape) for shape in shapes]
    if allocation == "uniform" or density in {0.0, 1.0}:
        return [float(density)] * len(sizes)
    law = _law(allocation, shapes, sizes)

    def total(t: float) -> float:
        # Every step rounds monotonically, so the sum rises with t in floating point too.
        return sum(d * n for d, n in zip(law(t), sizes, strict=True))

    return law(_last_within(total, density * sum(sizes)))


def _law(
    allocation: Allocation, shapes: Sequence[tuple[int, ...]], sizes: Sequence[int]
) -> Callable[[float], list[float]]:
    if allocation == "igq":
        # t / (n + t) would fall by a rounding where its top and bottom rise together; this cannot.
        return lambda t: [1.0 / (n / t + 1.0) if t else 0.0 for n in sizes]
    dims = [sum(shape) if allocation == "erk" else 1 for shape in shapes]
    rates = [d / n for d, n in zip(dims, sizes, strict=True)]
    return lambda t: [min(1.0, t * r) for r in rates]


def _last_within(total: Callable[[float], float], wanted: float) -> float:
    """Return the largest float t >= 0 with total(t) <= wanted, which some t exceeds."""
    low, high = 0.0, 1.0
    while total(high) <= wanted:
        low, high = high, 2.0 * high
    while low < (middle := low + (high - low) / 2.0) < high:
        if total(middle) <= wanted:
            low = middle
        else:
            high = middle
    return low
