"""What stands beside the code of a recipe: prose in `notes.md`, read by heading, and tables of data."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from typing import Any


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


def read_data(package: str, name: str) -> dict[str, Any]:
    """Return the tables of a TOML file of a recipe's package: settings that are data, not code."""
    return tomllib.loads(files(package).joinpath(name).read_text("utf-8"))
