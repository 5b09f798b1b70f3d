"""How numbers and names are written for people: digits, signs, units."""

from __future__ import annotations

import math
from collections.abc import Iterable

NONE = "–"


def decimals(unit: str, values: Iterable[float]) -> int:
    """Return how many decimals one column shows: 1 for percent, else 3 digits of the largest."""
    if unit == "%":
        return 1
    largest = max((abs(value) for value in values), default=0.0)
    if largest == 0:
        return 2
    return min(max(2 - math.floor(math.log10(largest)), 0), 6)


def number(value: float | None, digits: int, *, signed: bool = False) -> str:
    """Write a number with a true minus sign, and `–` for none."""
    if value is None:
        return NONE
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("−" if value < 0 else "+" if signed else "") + text


def interval(low: float | None, high: float | None, digits: int) -> str:
    """Write an interval as `[87.6, 88.6]`, and `–` where one seed gives none."""
    if low is None or high is None:
        return NONE
    return f"[{number(low, digits)}, {number(high, digits)}]"


def with_interval(
    mean: float | None, low: float | None, high: float | None, digits: int, *, signed: bool = False
) -> str:
    """Write `88.1 [87.6, 88.6]`; without an interval `88.1 –`, without a mean `–`."""
    if mean is None:
        return NONE
    return f"{number(mean, digits, signed=signed)} {interval(low, high, digits)}"


def size(count: float | None) -> str:
    """Write bytes with three digits and decimal units: `12.3 kB`."""
    return _scaled(count, ["B", "kB", "MB", "GB", "TB"])


def quantity(count: float | None) -> str:
    """Write a count with three digits: `12.3 k`, `1.20 M`."""
    return _scaled(count, ["", "k", "M", "G", "T"])


def duration(seconds: float | None) -> str:
    """Write a time: `3.2 s`, `61 s`, `21 min`, `3.4 h`."""
    if seconds is None:
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def phrase(key: str) -> str:
    """Turn a key into words: `test_accuracy` becomes `Test accuracy`."""
    words = key.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def heading(key: str, unit: str) -> str:
    """Write a heading with its unit: `Test accuracy (%)`."""
    return f"{phrase(key)} ({unit})" if unit else phrase(key)


def _scaled(count: float | None, units: list[str]) -> str:
    if count is None:
        return NONE
    if count < 999.5:
        return f"{count:.0f} {units[0]}".rstrip()
    power = 0
    while count >= 999.5 and power < len(units) - 1:
        count /= 1000
        power += 1
    digits = 2 if count < 9.995 else 1 if count < 99.95 else 0
    return f"{count:.{digits}f} {units[power]}"


def chosen_on_tested(name: str, part: str, chosen: str) -> str:
    """Return what to say of scores on the images that something was chosen on.

    Args:
        name: The data set.
        part: The part that scores are of: `train` or `validation`.
        chosen: What was chosen, as in "the best step was chosen".
    """
    lacking = "validation or test" if part == "train" else "test"
    kind = {"train": "training"}.get(part, part)
    return (
        f"{name} has no {lacking} images: {chosen} on the same {kind} images that the scores are of, "
        "which flatters them; give it a test part"
    )
