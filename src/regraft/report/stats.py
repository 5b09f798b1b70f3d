"""Means over seeds with their 95% intervals, alone and as differences between paired runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from regraft.errors import InputError


class Estimate(NamedTuple):
    """A mean with its 95% interval over seeds; one seed gives a mean without an interval."""

    n: int
    mean: float
    low: float | None
    high: float | None


def estimate(values: Iterable[float]) -> Estimate:
    """Return the mean of `values` and its 95% t-interval.

    With sample deviation s the interval is mean ± t(0.975, n - 1) · s / sqrt(n). The order of the
    values does not matter, to the last bit.

    Raises:
        InputError: There are no values, or one is not finite.
    """
    values = [float(value) for value in values]
    if not values:
        raise InputError("values is empty: a mean needs the result of at least one finished run")
    for value in values:
        if not math.isfinite(value):
            raise InputError(f"values holds {value}: a mean over seeds needs finite numbers")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(1, mean, None, None)
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return Estimate(n, mean, mean - half, mean + half)


def paired_difference(values: Mapping[int, float], control: Mapping[int, float]) -> Estimate:
    """Return the mean of value - control over the seeds both have, with its 95% t-interval.

    Pairing removes what two runs of one seed share (initialisation, order of the data), so the
    interval is often far narrower than the difference of two separate means would have.

    Args:
        values: Result of each seed.
        control: Result of each seed of the control.

    Raises:
        InputError: No seed is in both, or a value is not finite.
    """
    seeds = sorted(values.keys() & control.keys())
    if not seeds:
        raise InputError(
            f"values has the seeds {sorted(values)} and control {sorted(control)}: "
            "a paired difference needs a common seed, so run both arms with the same ones"
        )
    return estimate(values[seed] - control[seed] for seed in seeds)
