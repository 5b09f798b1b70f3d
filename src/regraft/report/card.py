"""The card of a result folder: what was done and measured, for people and for programs.

Every verb that leaves a folder makes one `ResultCard` and hands it to `write_card`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from regraft.errors import MissingExtraError
from regraft.files import load_json, reading, write_bytes, write_json, write_text

from .document import Figure, Section, Table, escape_markdown, fenced, render

SCHEMA = 1
CARD = "card.json"

_OWN = (
    "schema",
    "kind",
    "title",
    "summary",
    "lines",
    "tables",
    "notes",
    "files",
    "command",
    "next",
)
_FILES = {
    "README.md": "this page",
    "report.html": "the same with figures, for a browser",
    CARD: "all of this for programs; it is written last",
}


@dataclass(frozen=True, kw_only=True)
class ResultCard:
    """What a command did and measured, with three forms: Markdown, an HTML page, and JSON.

    All text is plain: each form escapes what would be markup there. Tables and figures of one `title`
    make one section, in the order in which the titles first come up in `tables`, then in `figures`.

    Attributes:
        kind: What made it: `merge`, `condense`, ...
        title: Heading, a few words.
        lines: What was done and what came of it, a sentence each, the most telling first.
        tables: What was measured; the first is what a verb prints.
        figures: Drawings; they are on the page, and those with a `file` in README.md too.
        notes: What a user should beware of, a sentence each.
        files: What each file of the folder is, by its name; the card's own are added.
        command: The command that made it, as typed.
        next: Commands that use the result, whole: they must work as they stand (`command_of`).
        summary: A few words each, below the title of the page.
        facts: How it was run, by name: versions, settings.
        data: Further entries of card.json, for programs.
    """

    kind: str
    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    next: Sequence[str] = ()
    summary: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse data under the names of the card's own entries."""
        if taken := [key for key in self.data if key in _OWN]:
            raise ValueError(f"data has {taken[0]!r}, which is an entry of every card")

    def to_markdown(self) -> str:
        """Return README.md."""
        parts = [f"# {escape_markdown(self.title)}", _listed([*self.lines, *self._cautions])]
        if self.next:
            parts += ["## Use", fenced(*self.next)]
        for title in self._titles:
            tables = [table for table in self.tables if table.title == title]
            figures = [figure for figure in self.figures if figure.title == title and figure.file]
            if not tables and not figures:
                continue
            parts.append(f"## {escape_markdown(title)}")
            for table in tables:
                parts += [f"**{escape_markdown(table.caption)}**"] if table.caption else []
                parts += [table.to_markdown().rstrip(), escape_markdown(table.note)]
            for figure in figures:
                shown = escape_markdown(figure.caption or title)
                parts += [f"![{shown}]({figure.file})", escape_markdown(figure.note)]
        if self.files:
            files = [f"- `{name}`: {escape_markdown(what)}" for name, what in self.files.items()]
            parts += ["## Files", "\n".join(files)]
        if self.command or self.facts:
            facts = [f"- {name}: {escape_markdown(value)}" for name, value in self.facts.items()]
            parts += [
                "## How it was run",
                fenced(self.command) if self.command else "",
                "\n".join(facts),
            ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def to_html(self) -> str:
        """Return report.html: one file, no script, no request, light and dark; equal for equal cards.

        Raises:
            MissingExtraError: jinja2, or matplotlib for a drawing, is not installed.
        """
        sections = [
            Section(title="In short", lines=[*self.lines, *self._cautions], commands=self.next)
        ]
        for title in self._titles:
            figures = [figure for figure in self.figures if figure.title == title]
            tables = [table for table in self.tables if table.title == title]
            notes = [figure.note for figure in figures if figure.note]
            sections.append(Section(title=title, figures=figures, tables=tables, notes=notes))
        commands = [self.command] if self.command else []
        sections.append(Section(title="How it was run", commands=commands, facts=self.facts))
        return render(sections, title=self.title, summary=self.summary)

    def to_json(self) -> dict[str, Any]:
        """Return card.json: the entries of every card, then `data`; what is not finite is null."""
        tables = [
            {
                "title": table.title,
                "caption": table.caption,
                "headings": list(table.headings),
                "rows": table.texts,
                "note": table.note,
            }
            for table in self.tables
        ]
        own = {
            "schema": SCHEMA,
            "kind": self.kind,
            "title": self.title,
            "summary": list(self.summary),
            "lines": list(self.lines),
            "tables": tables,
            "notes": list(self.notes),
            "files": list(self.files),
            "command": self.command,
            "next": list(self.next),
        }
        return _finite({**own, **self.data})

    @property
    def _cautions(self) -> list[str]:
        return [f"note: {note}" for note in self.notes]

    @property
    def _titles(self) -> list[str]:
        return list(dict.fromkeys(part.title for part in (*self.tables, *self.figures)))


def write_card(folder: Path, card: ResultCard) -> ResultCard:
    """Write a card's figures, README.md, report.html and, last of all, card.json; return it as written.

    Where card.json is, everything else is. Each file is whole or not there. A card without tables and
    figures gets no page; one whose page needs parts that are not installed says so in its notes.

    Raises:
        InputError: The folder cannot be written to.
        RegraftError: The disk is full or failing.
    """
    files = dict(card.files)
    for figure in card.figures:
        if figure.file:
            content = figure.draw()
            data = content.encode() if isinstance(content, str) else content
            write_bytes(folder / figure.file, data)
            files.setdefault(figure.file, figure.caption or figure.title)
    files |= {name: what for name, what in _FILES.items() if name != "report.html"}
    if card.tables or card.figures:
        try:
            write_text(folder / "report.html", card.to_html())
            files |= {"report.html": _FILES["report.html"]}
        except MissingExtraError as error:
            card = replace(card, notes=[*card.notes, f"report.html was left out: {error}"])
    files[CARD] = files.pop(CARD)
    card = replace(card, files=files)
    write_text(folder / "README.md", card.to_markdown())
    write_json(folder / CARD, card.to_json())
    return card


def read_card(folder: Path) -> ResultCard | None:
    """Return the card of a finished folder, without its figures, or None where there is none.

    Raises:
        InputError: The file is damaged.
    """
    file = folder / CARD
    if not file.exists():
        return None
    with reading(file, "restore it, or start again in another folder"):
        read = load_json(file, ours=True)
        own = {key: read[key] for key in _OWN if key not in ("schema", "tables", "files")}
        return ResultCard(
            **own,
            tables=[Table(**table) for table in read["tables"]],
            files=dict.fromkeys(read["files"], ""),
            data={key: value for key, value in read.items() if key not in _OWN},
        )


def command_of(verb: str, *words: str | Path, **options: str | None) -> str:
    """Return a `regraft` command as a shell takes it: paths whole, and an option that is None left out.

    For a network from a factory of one's own give `model=`: a file of weights never names code to run.
    """
    said = [part for name, value in options.items() if value is not None
            for part in (f"--{name.replace('_', '-')}", value)]  # fmt: skip
    whole = [str(word.absolute()) if isinstance(word, Path) else word for word in words]
    return f"regraft {verb} {shlex.join([*whole, *said])}"


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escape_markdown(line[:1].upper() + line[1:])}" for line in lines)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
