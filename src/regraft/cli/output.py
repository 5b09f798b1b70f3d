"""What verbs print: a table for a person or one JSON object for a program."""

from __future__ import annotations

import json
from typing import Any


def print_json(value: Any) -> None:
    """Print one JSON object on standard output."""
    print(json.dumps(value, indent=2))


def say(text: str = "", style: str | None = None) -> None:
    """Print a line for a person on standard output, as it stands: a path may hold brackets."""
    from rich.console import Console

    from regraft.errors import printable

    Console(soft_wrap=True, highlight=False).print(printable(text), style=style, markup=False)


def table(headings: list[str], lines: list[list[str]], *, title: str | None = None) -> None:
    """Print a table; columns after the first that hold numbers are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from regraft.errors import printable

    grid = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, heading in enumerate(headings):
        numeric = i > 0 and all(line[i][:1] in "0123456789+-–" for line in lines if line[i])
        grid.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for line in lines:
        grid.add_row(*(Text(printable(cell)) for cell in line))
    Console().print(grid)


def predictions(pictures: list[dict[str, Any]]) -> None:
    """Print the best classes of each image, as `regraft.jobs.predict.predictions.best` returns them."""
    from regraft.jobs.predict.predictions import headings

    lines = [
        [one["image"], *(f"{t['class']} {t['probability']:.1%}" for t in one["top"])]
        for one in pictures
    ]
    table(headings(len(lines[0]) - 1), lines)
