"""Steps that a job takes one after the other in its folder, and takes up again where they stopped."""

from __future__ import annotations

import time
from typing import Any, Protocol

from regraft.train import RunFolder
from regraft.train.loop import Progress


class Resumable(Protocol):
    """A training under way: what `drive` takes steps of."""

    at: int
    steps: int
    newest: dict[str, float]

    @property
    def done(self) -> bool:
        """Whether all steps are taken."""

    def step(self) -> None:
        """Take one."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


def drive(
    work: Resumable,
    folder: RunFolder,
    *,
    checkpoint_seconds: float,
    log_every: int = 50,
    progress: Progress | None = None,
) -> float:
    """Take all steps that are left and return the seconds of all of them, this time and before.

    Raises:
        RegraftError: As the steps do, or the folder cannot be written.
    """
    seconds, rows = 0.0, 0
    state = folder.load_checkpoint()
    if state is not None:
        work.load_state_dict(state["work"])
        seconds, rows = state["seconds"], state["metrics_bytes"]
    folder.truncate_metrics(rows)
    began = saved = time.monotonic()
    while not work.done:
        work.step()
        if work.at % log_every == 0 or work.done:
            folder.log({"step": work.at, "epoch": 0, "split": "train", **work.newest})
        if progress is not None:
            progress(work.at, work.steps, work.newest)
        now = time.monotonic()
        if folder.writes and (now - saved >= checkpoint_seconds or work.done):
            spent = seconds + now - began
            folder.save_checkpoint(
                {
                    "work": work.state_dict(),
                    "seconds": spent,
                    "metrics_bytes": folder.sync_metrics(),
                }
            )
            saved = now
    return round(seconds + time.monotonic() - began, 3)
