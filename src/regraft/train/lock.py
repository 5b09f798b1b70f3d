"""A folder held by one process at a time, as long as it is there."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path

from regraft.errors import RegraftError
from regraft.files import make_folder


class FolderLock:
    """Hold a folder, making it if it is missing; whoever comes second is refused at once.

    Without locks (Windows, some network file systems) one process at a time is the user's care.

    Args:
        path: The folder.

    Attributes:
        made: Whether the folder was made here.

    Raises:
        InputError: The folder cannot be made.
        RegraftError: Another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.made = path, False
        self._handle: int | None = None
        try:
            import fcntl
        except ImportError:
            self.made = not path.exists()
            make_folder(path)
            return
        for _ in range(100):
            self.made = not path.exists()
            make_folder(path)
            with contextlib.suppress(FileNotFoundError):
                self._handle = os.open(path, os.O_RDONLY)
            if self._handle is None:
                continue
            _HELD.add(self)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self.release()
                raise RegraftError(
                    f"{path} is being written by another process: wait for it or choose another folder"
                ) from error
            except OSError:  # a file system without locks
                return
            if self.is_there():
                return
            self.release()  # whoever held it was refused its input, and has just removed it
        raise RegraftError(f"{path} is removed again and again: choose another folder")

    def is_there(self) -> bool:
        """Whether the folder still lies where it was, and no other in its place."""
        if self._handle is None:
            return self.path.is_dir()
        try:
            return os.path.samestat(os.fstat(self._handle), self.path.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Let other processes have the folder."""
        if self._handle is not None:
            import fcntl

            # Closing alone would leave it to a process that was forked a moment ago.
            with contextlib.suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_UN)
        self.leave()

    def leave(self) -> None:
        """Close the folder, without a word to the processes that hold it open as well."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


_HELD: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _let_go() -> None:
    """Leave the locks to the parent: a data worker that outlives a killed run must not hold its folder."""
    for lock in list(_HELD):
        lock.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
