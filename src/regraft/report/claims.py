"""What a paper says beside what our runs say: it held, it did not, or they do not decide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from regraft.errors import InputError

from . import wording
from .document import escape_markdown
from .stats import Estimate

State = Literal["held", "did not hold", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published figure, to stand beside ours.

    Attributes:
        what: What was measured, in words: `gain`, `accuracy of ste_full`.
        figure: The published value.
        unit: Of both, `%` or `points` for two.
        ours: Our mean over seeds with its 95% interval, or None where nothing of ours compares.
    """

    what: str
    figure: float
    unit: str
    ours: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: the published value, and ours with its interval."""
        data: dict[str, Any] = {"what": self.what, "unit": self.unit, "published": self.figure}
        if self.ours is not None:
            data |= {"ours": self.ours.mean, "low": self.ours.low, "high": self.ours.high}
        return data

    def __str__(self) -> str:
        """Write `gain: published 28 points, ours 36.1 [28.2, 44.1]`."""
        end = "%" if self.unit == "%" else f" {self.unit}"
        text = f"{self.what}: published {self.figure:g}{end}, ours "
        if self.ours is None:
            return f"{text}unknown"
        digits = wording.decimals("%" if self.unit == "points" else self.unit, [self.ours.mean])
        return text + wording.with_interval(self.ours.mean, self.ours.low, self.ours.high, digits)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, whether it held here, and the settings that show it.

    `regraft.recipes.claims` makes claims of runs; `held` is no opinion.

    Attributes:
        paper: What is claimed, a sentence without its stop.
        held: True or False where the intervals decide, None where they do not.
        evidence: Settings of the rows that it rests on.
        note: The numbers, and why; a claim that is not held has to have one.
        published: Published figures to stand beside ours.
    """

    paper: str
    held: bool | None
    evidence: Sequence[str]
    note: str = ""
    published: Sequence[Published] = ()

    @property
    def state(self) -> State:
        """`held` in words."""
        if self.held is None:
            return "undecided"
        return "held" if self.held else "did not hold"

    @property
    def words(self) -> str:
        """The note and the published figures, as sentences."""
        beside = "; ".join(map(str, self.published))
        beside = f"Beside the paper: {beside}." if beside else ""
        return " ".join(part for part in (self.note.strip(), beside) if part)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; `published` is there where a figure is known."""
        data: dict[str, Any] = {
            "paper": self.paper,
            "state": self.state,
            "held": self.held,
            "evidence": list(self.evidence),
            "note": self.note.strip(),
        }
        if self.published:
            data["published"] = [figure.to_dict() for figure in self.published]
        return data

    def to_markdown(self) -> str:
        """Return a list item: state, claim, numbers, evidence."""
        settings = ", ".join(map(escape_markdown, self.evidence))
        words = f" {self.words}" if self.words else ""
        state = wording.phrase(self.state)
        return (
            f"- **{state}:** {escape_markdown(self.paper.rstrip('.'))}.{words} "
            f"Evidence: {settings}."
        )

    def check(self, settings: Iterable[str]) -> None:
        """Refuse a claim without evidence among `settings`, or one that is not held without a note.

        Raises:
            InputError: It is such a claim.
        """
        known = set(settings)
        if not self.evidence:
            raise InputError(
                f"the claim {self.paper!r} has no evidence: name the settings it rests on"
            )
        for setting in self.evidence:
            if setting not in known:
                raise InputError(
                    f"the claim {self.paper!r} names {setting!r} as evidence, which is no setting "
                    f"of the rows: choose from {', '.join(sorted(known))}"
                )
        if not self.held and not self.note.strip():
            raise InputError(f"the claim {self.paper!r} {self.state} and has no note: say why")
