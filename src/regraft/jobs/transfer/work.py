"""What a transfer has found so far, kept in its folder so that the same command goes on from there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FOLDER = "unfinished"


class Work:
    """Results of the parts of one command, each written whole when it is there.

    Args:
        out: The folder that is made.
        identity: Digest of what determines the results; those of another one are not used.

    Attributes:
        seconds: What the parts took that were there already.
    """

    def __init__(self, out: Path, identity: str) -> None:
        self.folder, self.identity, self.seconds = out / _FOLDER, identity, 0.0

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is kept under a name, or make and keep it.

        Args:
            name: Name of the part.
            make: Returns a tree of dicts, lists, tensors and plain values.

        Raises:
            InputError: The file is damaged.
            RegraftError: The disk is full or failing.
        """
        from regraft.train import load_state, save_state

        file = self.folder / f"{name}.safetensors"
        if file.exists():
            state = load_state(file)
            if state.get("identity") == self.identity:
                self.seconds += state["seconds"]
                return state["found"]
        began = time.monotonic()
        found = make()
        state = {"identity": self.identity, "seconds": time.monotonic() - began, "found": found}
        save_state(file, state)
        return found

    @staticmethod
    def remove(out: Path) -> None:
        """Remove what is kept, once the folder is finished."""
        shutil.rmtree(out / _FOLDER, ignore_errors=True)
