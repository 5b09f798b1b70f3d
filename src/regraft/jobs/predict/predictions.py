"""The best few classes of each image, as data, a table's headings and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regraft.files import csv_text


def best(
    paths: Sequence[Path], classes: Sequence[str], probabilities: Any, top: int
) -> list[dict[str, Any]]:
    """Return for each image its `top` classes with probabilities, the best first.

    Args:
        paths: The n images.
        classes: The K classes.
        probabilities: [n, K].
        top: How many classes, at most K.
    """
    values, order = probabilities.topk(min(top, len(classes)), dim=1)
    return [
        {
            "image": str(path),
            "top": [{"class": classes[k], "probability": p} for k, p in zip(ks, ps, strict=True)],
        }
        for path, ks, ps in zip(paths, order.tolist(), values.tolist(), strict=True)
    ]


def headings(top: int) -> list[str]:
    """Return the headings of a table of the best `top` classes."""
    return ["image", *("prediction" if i == 0 else f"choice {i + 1}" for i in range(top))]


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Return what `best` found as CSV: image, class, probability, class_2, probability_2, ..."""
    top = len(rows[0]["top"]) if rows else 1
    more = [f"{h}_{i}" for i in range(2, top + 1) for h in ("class", "probability")]
    lines = [
        [f["image"], *(v for t in f["top"] for v in (t["class"], f"{t['probability']:.6f}"))]
        for f in rows
    ]
    return csv_text([["image", "class", "probability", *more], *lines])
