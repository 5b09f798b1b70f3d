"""A progress bar that verbs show while they compute."""

from __future__ import annotations

from collections.abc import Callable


def loss_and_accuracy(row: dict[str, float]) -> str:
    """Return the newest row of a training's metrics in words."""
    return f"loss {row['loss']:.3f}, accuracy {row['accuracy']:.1f}%" if row else ""


class Bar:
    """A progress bar on standard error, shown from the first step on; use it as a context manager.

    Args:
        enabled: Show it; a verb that prints JSON does not.
        noun: What is counted.
        describe: Newest row of metrics -> text beside the bar.
    """

    def __init__(
        self,
        *,
        enabled: bool,
        noun: str = "step",
        describe: Callable[[dict[str, float]], str] = loss_and_accuracy,
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Left

        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn(noun), BarColumn(), MofNCompleteColumn(), Left(), TextColumn("{task.description}"),
            console=console, disable=not enabled,
        )  # fmt: skip
        self._describe = describe
        self._task = self._progress.add_task("")

    def update(self, step: int, steps: int, row: dict[str, float]) -> None:
        """Show that `step` of `steps` are done, with the newest row of metrics."""
        if not self._progress.live.is_started:
            self._progress.start()
        self._progress.update(
            self._task, completed=step, total=steps, description=self._describe(row)
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()
