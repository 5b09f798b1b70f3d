"""From the classes of a data set to the rows of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.errors import InputError, few


@dataclass(frozen=True, kw_only=True)
class Labels:
    """How classes find their rows where names do not tell.

    Attributes:
        by_number: Class i is row i, whatever the names.
        cure: What the user can say instead, for the error.
    """

    by_number: bool = False
    cure: str = "--class-names (once for each model)"


BY_NAME = Labels()


def label_rows(
    data: str,
    classes: Sequence[str],
    known: Sequence[str],
    count: int,
    *,
    whose: str = "the classifier",
    labels: Labels = BY_NAME,
) -> tuple[int, ...]:
    """Return the row of a classifier for each class of a data set.

    A class is the row of its own name where all are known. Else, where there are as many as rows,
    it is the row of its number; where there are fewer, their names must be the numbers of rows.

    Args:
        data: The data set, as it was named.
        classes: Its classes.
        known: Names of the classifier's rows; empty where they are not known.
        count: Number of the rows.
        whose: What to call the classifier.
        labels: What the command asks for where names do not tell.

    Raises:
        InputError: Labels that do not fit the classifier.
    """
    if len(classes) > count:
        raise InputError(
            f"data {data} has {len(classes)} classes and {whose} {count} rows: its labels do not fit "
            "the head; give data of the classes that the models were trained on"
        )
    if labels.by_number:
        return tuple(range(len(classes)))
    if set(classes) <= set(known):
        return tuple(known.index(c) for c in classes)
    if len(classes) == count:
        return tuple(range(count))
    numbers = [int(c) for c in classes if c.isdecimal() and int(c) < count]
    if not known and len(numbers) == len(set(numbers)) == len(classes):
        return tuple(numbers)
    stand = f"which stand for {few(known, 10)}" if known else "whose classes are not known"
    raise InputError(
        f"data {data} has {len(classes)} classes ({few(classes, 10)}) and {whose} {count} rows, {stand}: "
        f"say which rows they are with {labels.cure}"
    )
