"""The folder that an engine works in: where it is, and what lets an interrupted run go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from regraft.train.checkpoint import load_state, save_state


class WorkFolder(Protocol):
    """What merging asks of a folder; a recipe's `RunFolder` is one."""

    path: Path
    writes: bool

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the newest state, or None."""
        ...

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        ...

    def log(self, row: dict[str, Any]) -> None:
        """Append a row of metrics."""
        ...

    def sync_metrics(self) -> int:
        """Make the metrics last, and return their length."""
        ...

    def truncate_metrics(self, length: int) -> None:
        """Drop what was logged behind that length."""
        ...


class VerbFolder:
    """The folder of a command, which keeps its state in one file and no metrics.

    Args:
        path: The folder, which is there and held.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writes = True
        self._file = path / "checkpoint.safetensors"

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the newest state, or None."""
        return load_state(self._file) if self._file.exists() else None

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the state atomically."""
        save_state(self._file, state)

    def remove_checkpoint(self) -> None:
        """Remove the state of a run that is through."""
        self._file.unlink(missing_ok=True)

    def log(self, row: dict[str, Any]) -> None:
        """Keep nothing: the card says it all."""

    def sync_metrics(self) -> int:
        """Return the length of no metrics."""
        return 0

    def truncate_metrics(self, length: int) -> None:
        """Drop nothing."""
