"""Ranges of numbers, which stand beside the fields that have them, and the one check of them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_type_hints

from regraft.errors import InputError


@dataclass(frozen=True)
class Range:
    """What a number must be; the annotation of a field carries it: `Annotated[float, POSITIVE]`.

    Attributes:
        expected: The numbers that fit, in words.
        fits: Whether one does; written so that NaN, which compares with nothing, never does.
        option: The field's name on the command line, where it is not that of the field.
    """

    expected: str
    fits: Callable[[float], bool]
    option: str | None = None

    def of(self, option: str) -> Range:
        """Return the same range for a field that is called otherwise on the command line."""
        return replace(self, option=option)


AT_LEAST_0 = Range("at least 0", lambda v: v >= 0)
AT_LEAST_1 = Range("at least 1", lambda v: v >= 1)
AT_LEAST_2 = Range("at least 2", lambda v: v >= 2)
FINITE = Range("a finite number", math.isfinite)
NOT_NEGATIVE = Range("a finite number from 0 up", lambda v: 0 <= v < math.inf)
POSITIVE = Range("a finite number above 0", lambda v: 0 < v < math.inf)
SHARE = Range("a share in [0, 1]", lambda v: 0 <= v <= 1)
SEED = Range("a whole number of less than 63 bits", lambda v: abs(v) < 1 << 63)
BELOW_1 = Range("a number in [0, 1)", lambda v: 0 <= v < 1)
FOLDS = Range("0, or at least 2", lambda v: v == 0 or v >= 2)
POINTS = Range("0, or at least the two ends", lambda v: v == 0 or v >= 2)
SHARE_ABOVE_0 = Range("the share of values to keep, in (0, 1]", lambda v: 0 < v <= 1)
FACTOR = Range("a factor above 0 and at most 1", lambda v: 0 < v <= 1)


def check(*configs: Any, options: Mapping[str, str] | None = None) -> None:
    """Refuse numbers that no run can use, before anything is loaded or written.

    Args:
        configs: Dataclasses with ranges in the annotations of their fields; None in a field fits, and
            of a tuple every number must.
        options: Names of fields on the command line, where a verb calls them otherwise.

    Raises:
        InputError: A number is out of its range or not a number; the option is named.
    """
    for config in configs:
        for name, numbers in _ranges(type(config)).items():
            value = getattr(config, name)
            option = (options or {}).get(name, numbers.option or option_of(name))
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and not numbers.fits(number):
                    raise InputError(f"{option} {number}: expected {numbers.expected}")


def option_of(name: str) -> str:
    """Return a field's name as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


@cache
def _ranges(kind: type) -> dict[str, Range]:
    """Return the range of each field of a dataclass that has one."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        name: mark
        for name, hint in hints.items()
        for mark in getattr(hint, "__metadata__", ())
        if isinstance(mark, Range)
    }
