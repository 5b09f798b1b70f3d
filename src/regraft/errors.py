"""The errors that reach a user, and the exit code each ends the command line with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable


def printable(text: object) -> str:
    r"""Return text for a terminal: bytes that would steer it, out of a file's name or content, as escapes.

    Line ends and tabs stay; other control characters, marks of writing direction and lone surrogates
    are shown as Python writes them (`\x1b`).
    """
    return "".join(
        c if c in "\n\t" or c.isprintable() or (c.isspace() and ord(c) > 0xA0) else ascii(c)[1:-1]
        for c in str(text)
    )


def few(names: Iterable[str], most: int = 5, between: str = ", ") -> str:
    """Return the first names in a row, and dots where there are more."""
    first = list(itertools.islice(names, most + 1))
    return between.join(first if len(first) <= most else [*first[:-1], "..."])


class RegraftError(Exception):
    """Base of every error Regraft raises on purpose; its text is one sentence with the cure.

    `exit_code` is what the command line ends with: 1 for a run that failed, 2 for input that
    cannot be used, 3 for a missing optional part.
    """

    exit_code: int = 1


class InputError(RegraftError, ValueError):
    """An argument, file or folder that cannot be used as given."""

    exit_code = 2


class DivergenceError(RegraftError, ArithmeticError):
    """The loss stopped being a finite number; the message names the step."""


class MissingExtraError(RegraftError, ImportError):
    """An optional dependency is not installed; the message holds the install line."""

    exit_code = 3

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: pip install 'regraft[{extra}]'"
        )
        self.package = package
        self.extra = extra


class BrokenExtraError(RegraftError, ImportError):
    """An optional dependency is installed and cannot be imported; the message says why, and the cure."""

    exit_code = 3

    def __init__(self, package: str, purpose: str, error: Exception) -> None:
        reason = " ".join(str(error).split())[:200]
        super().__init__(
            f"{purpose} needs {package}, which is installed but cannot be imported "
            f"({type(error).__name__}: {reason}), as one built for another torch cannot: "
            f"pip install --upgrade --force-reinstall torch {package}"
        )
        self.package = package
