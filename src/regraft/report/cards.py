"""The pages of a result folder: the report, and what was found, its scores, files and command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Card = dict[str, Any]


def write_documents(
    out: Path, card: Card, *, page: Callable[[Card], str] | None, about: Callable[[Card], str]
) -> Card:
    """Write README.md and, where its parts are installed, report.html; return the card with them.

    Args:
        out: The result folder.
        card: What was found; it is not changed.
        page: Makes the report; None for no report.
        about: Makes the README, of a card that names all files.
    """
    from regraft.errors import MissingExtraError
    from regraft.files import write_text

    card = {**card, "files": list(card["files"])}
    if page is not None:
        try:
            write_text(out / "report.html", page(card))
            card["files"].append("report.html")
        except MissingExtraError as error:
            card["notes"] = [*card["notes"], f"report.html was left out: {error}"]
    card["files"] += ["README.md", "card.json"]
    write_text(out / "README.md", about(card))
    return card


def readme(
    title: str,
    lines: Iterable[str],
    *,
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None,
    files: Iterable[str],
    known: Mapping[str, str],
    command: str,
) -> str:
    """Return the page as markdown.

    Args:
        title: Its heading.
        lines: Sentences about the result, one each.
        table: Headings and rows of the scores, where there are any.
        files: Names of the files beside it.
        known: What a file is by how its name begins; the first that fits, else it is the page itself.
        command: The command that made it.
    """
    parts = [f"# {title}", "", *(f"- {line[:1].upper()}{line[1:]}" for line in lines), ""]
    if table is not None:
        headings, body = table
        rows = [headings, ["---"] * len(headings), *body]
        parts += [*(f"| {' | '.join(row)} |" for row in rows), ""]
    for name in files:
        what = next((v for k, v in known.items() if name.startswith(k)), "this page")
        parts.append(f"- `{name}`: {what}")
    return "\n".join([*parts, "", "```", command, "```", ""])
