"""What verbs print: a table for a person or one JSON object for a program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.errors import printable

if TYPE_CHECKING:
    from regraft.jobs.verb import Done

    from .json_option import Values


def print_json(value: object) -> None:
    """Print one JSON object on standard output."""
    print(json.dumps(value, indent=2))


def say(text: str = "", style: str | None = None) -> None:
    """Print a line for a person on standard output, as it stands: a path may hold brackets."""
    from rich.console import Console

    Console(soft_wrap=True, highlight=False).print(printable(text), style=style, markup=False)


def table(headings: list[str], lines: list[list[str]], *, title: str | None = None) -> None:
    """Print a table; columns after the first that hold numbers are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, heading in enumerate(headings):
        numeric = i > 0 and all(line[i][:1] in "0123456789+-–" for line in lines if line[i])
        # What a line is about stays in one piece; the rest wraps first.
        names = [len(line[i]) for line in lines if len(line[i]) <= 32] if i == 0 else []
        grid.add_column(
            heading,
            justify="right" if numeric else "left",
            overflow="fold",
            min_width=max(names, default=1),
        )
    for line in lines:
        grid.add_row(*(Text(printable(cell)) for cell in line))
    Console().print(grid)


def predictions(pictures: list[Values]) -> None:
    """Print the best classes of each image, as `regraft.jobs.predict.predictions.best` returns them."""
    from regraft.jobs.predict.predictions import headings

    lines = [
        [one["image"], *(f"{t['class']} {t['probability']:.1%}" for t in one["top"])]
        for one in pictures
    ]
    table(headings(len(lines[0]) - 1), lines)


def tell(done: Done, folder: Path, verb: str, *, as_json: bool) -> None:
    """Print the card of a result folder: one JSON object, or what was done, measured, and comes next.

    Args:
        done: What a verb came to.
        folder: Its folder.
        verb: What one would do again.
        as_json: Print one JSON object.
    """
    card = done.card
    if as_json:
        print_json({"out": str(folder), **card.to_json()})
        return
    if done.before:
        say(f"{folder} is finished already; remove it to {verb} again")
    for line in (*card.lines, *(f"note: {note}" for note in card.notes)):
        say(line)
    for measured in card.tables[:1]:
        table(list(measured.headings), measured.texts)
    say(f"result: {folder}; card: {folder / 'README.md'}")
    for command in card.next:
        say(f"next: {command}")
