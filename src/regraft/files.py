"""Files that are either whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError, RegraftError

if TYPE_CHECKING:  # the command line must start without torch
    from torch import Tensor

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, what was written there takes its place.

    A reader, or a crash, sees the old content or the new, never a part: the bytes reach the disk
    and then take the name in one step; missing folders are made. A failure leaves what was there
    and no temporary file.

    Raises:
        InputError: The path cannot be written to.
        RegraftError: The disk is full or failing.
    """
    path = Path(path)
    # The name is short whatever the target's is, so that no length limit is met early.
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        # The error that is already on its way says more than a failure to remove would.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file as `atomic_path` describes, with the same errors."""
    with atomic_path(path) as temporary, temporary.open("xb") as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text as `atomic_path` describes, with the line ends as they are.

    Lone surrogates, which a file name or a JSON file can hold, are written as escapes.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_tensors(path: str | Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file as `atomic_path` describes, with the same errors.

    Args:
        path: The file.
        tensors: Contiguous tensors that share no memory, by name.
        header: Its metadata.
    """
    import safetensors
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        # safetensors makes files that only their owner can read; keep the mode the user asked for.
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata=header)
            _sort_metadata(temporary)
            temporary.chmod(mode)
        except safetensors.SafetensorError as error:
            raise RegraftError(
                f"writing {path} failed ({error}): free some space, or write elsewhere"
            ) from error


def _sort_metadata(path: Path) -> None:
    """Put the entries of a safetensors header in order, so that equal files have equal bytes.

    safetensors writes them in an order of its own at every call.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        ordered = {"__metadata__": dict(sorted(metadata.items())), **header}
        text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
        if len(metadata) > 1 and len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents unless they are there, and return it.

    Raises:
        InputError: Something else is in the way, or the place cannot be written to.
        RegraftError: The disk is full or failing.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(path: Path, error: OSError) -> RegraftError:
    reason = error.strerror or str(error)
    if error.errno in _DISK:
        return RegraftError(
            f"writing {path} failed ({reason}): free some space, or write elsewhere"
        )
    return InputError(
        f"{path} cannot be written ({reason}): give a path in a folder you may write to"
    )


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse to sync a folder; the file itself is safe.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)
