"""A document of titled sections, as one self-contained HTML page; and its tables, in Markdown too.

Everything that is written for people is made of these: a page about runs (`page.py`), the card of a
result folder (`card.py`), committed results (`results.py`).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal, NamedTuple

from regraft.errors import MissingExtraError

from . import svg

Kind = Literal["text", "number", "interval", "code"]
"""How a column reads: numbers and their intervals stand to the right."""


class Cell(NamedTuple):
    """A cell that is more than its text.

    Attributes:
        text: What is in it.
        mark: `clear` for a difference that excludes zero, `right` and `wrong` for counts of a
            confusion matrix.
        share: Percent of its row, as which it is shaded.
    """

    text: str
    mark: Literal["", "clear", "right", "wrong"] = ""
    share: int | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Headings and rows of plain text.

    Attributes:
        headings: One for each column.
        rows: As many cells each.
        title: Of the section it belongs to.
        caption: Of the table itself.
        note: What a reader must know of it, below it.
        kinds: How each column reads; without it the first is text and the others numbers.
        groups: For each row the heading of the group that it belongs to.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    title: str = ""
    caption: str = ""
    note: str = ""
    kinds: Sequence[Kind] = ()
    groups: Sequence[str] = ()

    @property
    def columns(self) -> list[tuple[str, Kind]]:
        """The headings, each with how its column reads."""
        rest: list[Kind] = ["number"] * (len(self.headings) - 1)
        return list(zip(self.headings, self.kinds or ["text", *rest], strict=True))

    @property
    def bodies(self) -> list[tuple[str, list[list[Cell]]]]:
        """The rows by group, all in one without a heading where there are no groups."""
        bodies: dict[str, list[list[Cell]]] = {}
        for group, row in zip(self.groups or [""] * len(self.rows), self.rows, strict=True):
            cells = [cell if isinstance(cell, Cell) else Cell(cell) for cell in row]
            bodies.setdefault(group, []).append(cells)
        return list(bodies.items())

    @property
    def texts(self) -> list[list[str]]:
        """The rows as text alone."""
        return [
            [cell.text if isinstance(cell, Cell) else cell for cell in row] for row in self.rows
        ]

    @property
    def shaded(self) -> bool:
        """Whether it is a matrix whose cells are shaded."""
        return any(
            cell.share is not None for _, rows in self.bodies for row in rows for cell in row
        )

    def to_markdown(self) -> str:
        """Return it as a Markdown table, without caption and note, ending in a line feed."""
        lines = [[_in_table(text) for text in row] for row in [self.headings, *self.texts]]
        rules = ["---:" if kind in ("number", "interval") else "---" for _, kind in self.columns]
        lines.insert(1, rules)
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing of a section.

    Attributes:
        title: Of the section it belongs to.
        content: SVG text as `lines` returns it, a PNG file as bytes, or what draws one of them: a
            drawing that needs matplotlib is then made only when a page is.
        caption: Of the figure itself.
        note: What a reader must know of it, below it.
        file: Where it lies as a file beside a card, which writes it there and shows it in README.md.
    """

    title: str
    content: str | bytes | Callable[[], str | bytes]
    caption: str = ""
    note: str = ""
    file: str = ""

    def draw(self) -> str | bytes:
        """Return the SVG text or the PNG file.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return self.content() if callable(self.content) else self.content


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled part of a page, in this order where it has several: claims to facts.

    Attributes:
        title: Its heading.
        claims: What was claimed (`Claim`), and whether it held.
        text: Paragraphs.
        lines: Sentences as a list.
        figures: Drawings, beside each other.
        wide: Let each drawing have the width of the page.
        legend: Swatch (markup) and label of what the figures share.
        tables: Tables.
        notes: Small print.
        commands: Of a shell.
        facts: Names and values.
        folded: What stands in place of tables that are folded away.
    """

    title: str
    claims: Sequence[Any] = ()
    text: Sequence[str] = ()
    lines: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    wide: bool = False
    legend: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    folded: str = ""


def render(
    sections: Sequence[Section], *, title: str, lede: str = "", summary: Sequence[str] = ()
) -> str:
    """Return sections as one HTML page: no script, no request, light and dark; equal for equal ones.

    Args:
        sections: What stands on it, from above.
        title: Its heading.
        lede: Sentences below that.
        summary: A few words each, in one line below.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "writing a report page") from error
    drawn = [
        [
            {"caption": figure.caption, "markup": Markup(_inline(figure, f"f{i}-{j}-"))}
            for j, figure in enumerate(section.figures)
        ]
        for i, section in enumerate(sections)
    ]
    legends = [[(Markup(swatch), label) for swatch, label in s.legend] for s in sections]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    here = files("regraft.report")
    template = environment.from_string(here.joinpath("page.html.jinja").read_text("utf-8"))
    return template.render(
        css=Markup(here.joinpath("page.css").read_text("utf-8").strip()),
        title=title,
        lede=lede,
        summary=summary,
        sections=list(zip(sections, drawn, legends, strict=True)),
    )


def escape_markdown(text: str) -> str:
    """Return text in one line that Markdown reads as it stands; `_` inside a word is left alone."""
    text = re.sub(r"([\\`*\[\]<>|~&])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def _in_table(text: str) -> str:
    # Brackets alone, as of an interval, are no markup.
    return text if re.fullmatch(r"[-\d\s.,+−–%\[\]]*", text) else escape_markdown(text)


def fenced(*commands: str) -> str:
    """Return commands as a Markdown block of shell, whatever they hold."""
    text = "\n".join(command.strip() for command in commands)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"


def _inline(figure: Figure, prefix: str) -> str:
    content = figure.draw()
    if isinstance(content, str):
        return svg.inline(content, prefix)
    from markupsafe import escape

    data = base64.b64encode(content).decode("ascii")
    label = escape(figure.caption or figure.title)
    return f'<img class="sheet" alt="{label}" src="data:image/png;base64,{data}">'
