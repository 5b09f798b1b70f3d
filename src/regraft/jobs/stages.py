"""What a command of several stages shows while it computes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .progress import Bar


class Stages:
    """One progress bar after the other, and remarks between them, on standard error."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._bar: Bar | None = None

    def begin(self, what: str) -> Any:
        """Show the next bar and return what updates it."""
        self._end()
        self._bar = Bar(enabled=self._enabled, noun=what).__enter__()
        return self._bar.update

    def say(self, text: str) -> None:
        """Show a remark."""
        if self._enabled:
            print(text, file=sys.stderr, flush=True)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.__exit__()
            self._bar = None

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()


Progress = Callable[[int, int, dict[str, Any]], None]
Shown = Progress | Stages | None
"""What shows how far a job is: one function for all of its stages, or bars, one after the other."""


def remark(progress: Shown, text: str) -> None:
    """Say what is done next, where a command shows its stages."""
    if isinstance(progress, Stages):
        progress.say(text)


def begin(progress: Shown, what: str) -> Progress | None:
    """Return what is called after every step of a stage."""
    return progress.begin(what) if isinstance(progress, Stages) else progress
