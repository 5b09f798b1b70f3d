"""A progress bar that verbs show while they compute, or a line now and then where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

_EVERY = 20.0
"""Seconds between two lines where a bar cannot be drawn."""


def loss_and_accuracy(row: dict[str, float]) -> str:
    """Return the newest row of a training's metrics in words."""
    parts = [f"loss {row['loss']:.3f}"] if "loss" in row else []
    return ", ".join([*parts, *([f"accuracy {row['accuracy']:.1f}%"] if "accuracy" in row else [])])


class Bar:
    """A progress bar on standard error, shown from the first step on; use it as a context manager.

    Args:
        enabled: Show it; a verb that prints JSON does not.
        noun: What is counted.
        describe: Newest row of metrics -> text beside the bar.
        clock: Seconds.
    """

    def __init__(
        self,
        *,
        enabled: bool,
        noun: str = "step",
        describe: Callable[[dict[str, float]], str] = loss_and_accuracy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Left

        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn(noun), BarColumn(), MofNCompleteColumn(), Left(), TextColumn("{task.description}"),
            console=console, disable=not enabled,
        )  # fmt: skip
        self._lines = enabled and not console.is_terminal
        self._noun, self._clock, self._last = noun, clock, clock()
        self._describe = describe
        self._task = self._progress.add_task("")

    def update(self, step: int, steps: int, row: dict[str, float]) -> None:
        """Show that `step` of `steps` are done, with the newest row of metrics."""
        if self._lines:
            self._line(step, steps, row)
        if not self._progress.live.is_started:
            self._progress.start()
        self._progress.update(
            self._task, completed=step, total=steps, description=self._describe(row)
        )

    def _line(self, step: int, steps: int, row: dict[str, float]) -> None:
        """Write a line where the last is long enough ago; what ends sooner is told by its end."""
        now = self._clock()
        if now - self._last >= _EVERY and step < steps:
            self._last = now
            text = self._describe(row)
            print(
                f"{self._noun} {step} of {steps}{': ' if text else ''}{text}",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()
