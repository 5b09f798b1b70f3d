"""Committed results: a page in Markdown, its figures, and the numbers for machines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.files import json_text, write_text

from . import wording
from .claims import Claim
from .document import escape_markdown, fenced
from .table import Row, to_markdown


def write_results(
    folder: str | Path,
    name: str,
    *,
    title: str,
    question: str,
    recipe: str,
    scale: str,
    command: str,
    hardware: str,
    commit: str,
    seconds: float,
    rows: Sequence[Row],
    claims: Sequence[Claim],
    figures: Mapping[str, str],
    reading: str,
) -> list[Path]:
    """Write `NAME.md`, `NAME-FIGURE.svg` for each figure, and `NAME.json`, and return the paths.

    Every file is whole or not there, and the JSON comes last: where it is, the others are. Equal
    arguments give equal bytes.

    Args:
        folder: Where to write; made if missing.
        name: First part of the file names.
        title: Heading of the page.
        question: The question, in a paragraph.
        recipe: Name of the recipe.
        scale: Scale it ran at.
        command: What a reader types to get these numbers.
        hardware: What it ran on, in words.
        commit: Commit of the code.
        seconds: Wall-clock time of the whole command.
        rows: The numbers.
        claims: The paper's claims against them.
        figures: SVG text by name; the names become captions.
        reading: What the numbers say, as Markdown.

    Raises:
        InputError: A name is no plain file name, there are no rows or one holds a number that is
            not finite, a claim has no evidence among them or is not held without a note, or the folder
            cannot be written to.
        RegraftError: The disk is full or failing.
    """
    folder = Path(folder)
    for argument, value in [("name", name), *(("a figure's name", key) for key in figures)]:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.=-]*", value):
            raise InputError(
                f"{argument} is {value!r}, expected letters, digits and any of _ . = -"
            )
    if not rows:
        raise InputError("rows is empty: results need at least one finished run")
    for claim in claims:
        claim.check(row.setting for row in rows)
    data = {
        "recipe": recipe,
        "scale": scale,
        "command": command,
        "commit": commit,
        "hardware": hardware,
        "seconds": seconds,
        "rows": [row.to_dict() for row in rows],
        "claims": [claim.to_dict() for claim in claims],
    }
    try:
        numbers = json_text(_rounded(data), indent=1, allow_nan=False)
    except ValueError as error:
        raise InputError(
            "rows or seconds hold a number that is not finite: leave out runs that diverged"
        ) from error
    facts = {
        "Recipe": f"{recipe}, at scale {scale}",
        "Hardware": hardware,
        "Commit": commit,
        "Time": wording.duration(seconds),
    }
    parts = [f"# {escape_markdown(title)}", question.strip()]
    if claims:
        parts += ["## Claims", *(claim.to_markdown() for claim in claims)]
    parts += [
        "## Results",
        to_markdown(rows).rstrip(),
        "Means over n seeds with 95% t-intervals; differences are paired by seed, over the seeds "
        "that an arm shares with its control. Costs are means over seeds.",
    ]
    for key in figures:
        parts.append(f"![{escape_markdown(wording.phrase(key))}]({name}-{key}.svg)")
    if reading.strip():
        parts += ["## Reading", reading.strip()]
    parts += ["## How it was run", fenced(command)]
    parts.append("\n".join(f"- {key}: {escape_markdown(value)}" for key, value in facts.items()))
    parts.append(f"The same numbers for machines: [`{name}.json`]({name}.json).")
    written = []
    for file, text in [
        *((f"{name}-{key}.svg", text) for key, text in figures.items()),
        (f"{name}.md", "\n\n".join(parts) + "\n"),
        (f"{name}.json", numbers),
    ]:
        write_text(folder / file, text)
        written.append(folder / file)
    return written


def _rounded(value: Any) -> Any:
    """Keep six significant digits of every float: more would be noise in a committed file."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
