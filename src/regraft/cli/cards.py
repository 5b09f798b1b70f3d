"""The README.md of a result folder: what was found, its scores, its files, and the command."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


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
