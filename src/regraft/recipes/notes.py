"""The prose of a recipe: `notes.md` beside its code, read by heading."""

from __future__ import annotations

import re
from importlib.resources import files


def read_notes(package: str) -> dict[str, str]:
    """Return the texts of `notes.md` of a recipe's package by their headings, in lower case.

    The file parts itself by lines `## Heading`; what stands before the first is for its readers alone.
    Every recipe has at least `question`, `scales` and `reading`.

    Args:
        package: The package, `regraft.recipes.iterand`: `__package__` of the module that asks.
    """
    text = files(package).joinpath("notes.md").read_text("utf-8")
    parts = re.split(r"^## +(.+?) *$", text, flags=re.MULTILINE)[1:]
    return {
        heading.lower(): re.sub(r"(?<!\n)\n(?![\n\-|*#]) *", " ", body.strip())
        for heading, body in zip(parts[::2], parts[1::2], strict=True)
    }
