"""What this process can know of where it runs: which of several it is, and the user's folders."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import InputError


def world_size() -> int:
    """Return how many processes compute one run together, as torchrun says in WORLD_SIZE.

    Raises:
        InputError: WORLD_SIZE is no number of processes.
    """
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """Return the number of this process among those of one run, 0 where it is alone.

    RANK, LOCAL_RANK and what a scheduler sets count only where WORLD_SIZE says that there are several:
    one process that believed to be the second of a world that is not there would write nothing.

    Raises:
        InputError: WORLD_SIZE is above 1, and RANK is missing or no number below it.
    """
    size = world_size()
    if size == 1:
        return 0
    # Lightning's own launcher, which starts the processes of one machine, sets LOCAL_RANK alone.
    name = next((n for n in ("RANK", "LOCAL_RANK") if n in os.environ), None)
    if name is None:
        raise InputError(
            f"WORLD_SIZE={size} without RANK: start the processes with torchrun, or unset WORLD_SIZE"
        )
    number = _number(name, 0, least=0)
    if number >= size:
        raise InputError(
            f"{name}={number} with WORLD_SIZE={size}: ranks go from 0 to {size - 1}; start the processes "
            "with torchrun, or unset both"
        )
    return number


def is_first_process() -> bool:
    """Whether this is the one of several processes that speaks and writes."""
    return rank() == 0


def expanded(path: str | Path) -> Path:
    """Return a path with `~` as the user's home folder.

    Raises:
        InputError: It begins with `~`, and this user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        if Path(path).exists():
            return Path(path)
        raise InputError(
            f"{path}: this user has no home folder for ~; give the path in full"
        ) from error


def cache_folder() -> Path:
    """Return the folder for what can be made again: `~/.cache/regraft`, or one for temporary files.

    The second is for users without a home folder, as containers have them.
    """
    try:
        return Path.home() / ".cache" / "regraft"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "regraft"


def _number(name: str, default: int, least: int = 1) -> int:
    text = os.environ.get(name) or str(default)
    if not text.strip().isdecimal() or int(text) < least:
        raise InputError(
            f"{name}={text!r} in the environment: expected a number of processes, as torchrun sets it, "
            "or none"
        )
    return int(text)
