"""Steps that a job takes one after the other in its folder, and takes up again where they stopped."""

from __future__ import annotations

import time
from typing import Any, Protocol

from torch import nn

from regraft.config import RuntimeConfig
from regraft.train import RunFolder, peak_bytes, reset_peak
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
    trained: nn.Module,
    folder: RunFolder,
    runtime: RuntimeConfig,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Take all steps that are left and return the run's result; see `Job.work`.

    The state is saved every `checkpoint_seconds` and after the last step, with the newest figures: a run
    that is killed between its last step and its result comes to the same result.

    Args:
        work: The training.
        trained: The network that it trains.
        folder: The run's open folder.
        runtime: How often to log and to save.
        progress: Called after every step.

    Returns:
        `metrics` (the newest figures as `train_NAME`), `seconds` of all steps, this time and before,
        `trainable_parameters`, and `peak_memory_bytes`.

    Raises:
        RegraftError: As the steps do, or the folder cannot be written.
    """
    seconds, rows = 0.0, 0
    state = folder.load_checkpoint()
    if state is not None:
        work.load_state_dict(state["work"])
        work.newest = dict(state["newest"])
        seconds, rows = state["seconds"], state["metrics_bytes"]
    folder.truncate_metrics(rows)
    reset_peak()
    began = saved = time.monotonic()
    while not work.done:
        work.step()
        if work.at % runtime.log_every == 0 or work.done:
            folder.log({"step": work.at, "epoch": 0, "split": "train", **work.newest})
        if progress is not None:
            progress(work.at, work.steps, work.newest)
        now = time.monotonic()
        if folder.writes and (now - saved >= runtime.checkpoint_seconds or work.done):
            folder.save_checkpoint(
                {
                    "work": work.state_dict(),
                    "newest": work.newest,
                    "seconds": seconds + now - began,
                    "metrics_bytes": folder.sync_metrics(),
                }
            )
            saved = now
    return {
        "metrics": {f"train_{name}": value for name, value in work.newest.items()},
        "seconds": round(seconds + time.monotonic() - began, 3),
        "trainable_parameters": sum(p.numel() for p in trained.parameters() if p.requires_grad),
        "peak_memory_bytes": peak_bytes(),
    }
