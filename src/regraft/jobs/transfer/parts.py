"""The parts of a transfer that are through, kept in its folder so that the same command goes on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

from regraft.train import RunFolder, load_state, save_state

_FOLDER = "unfinished"


class Parts:
    """Parts of one run, each kept whole when it is there.

    Args:
        folder: The run's open folder.

    Attributes:
        seconds: What the parts took that were there already.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.seconds = folder, 0.0

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is kept under a name, or make and keep it.

        Args:
            name: Name of the part.
            make: Returns a tree of dicts, lists, tensors and plain values.

        Raises:
            InputError: The file is damaged.
            RegraftError: The disk is full or failing.
        """
        file = self.folder.path / _FOLDER / f"{name}.safetensors"
        digest = self.folder.identity["digest"]
        if file.exists():
            part = load_state(file)
            if part.get("digest") == digest:
                self.seconds += part["seconds"]
                return part["tree"]
        began = time.monotonic()
        tree = make()
        if self.folder.writes:
            seconds = time.monotonic() - began
            save_state(file, {"digest": digest, "seconds": seconds, "tree": tree})
        return tree

    def remove(self) -> None:
        """Remove what is kept, once the run is finished."""
        if self.folder.writes:
            shutil.rmtree(self.folder.path / _FOLDER, ignore_errors=True)
