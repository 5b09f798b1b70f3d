"""Files that are either whole or not there; JSON and tensors that are refused where damaged."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError, RegraftError

if TYPE_CHECKING:  # the command line must start without torch
    from torch import Tensor

DIGEST = "regraft.digest"
"""Entry of every file of ours with SHA-256 in hex.

In a safetensors header it is of the whole file, with zeros in place of these digits; in JSON of all
other entries, written with sorted keys and without spaces.
"""

MOST_JSON = 1 << 26
"""Bytes of a JSON file above which it is refused unread: 64 MiB."""

_QUOTED = re.compile('[,"\r\n]')
_ZEROS = "0" * 64
_WRITTEN = re.compile(rb'"regraft\.digest":"([0-9a-f]{64})"')
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on leaving, what was written there takes its place.

    A reader, or a crash, sees the old content or the new, never a part: the bytes reach the disk
    and then take the name in one step; missing folders are made. A failure leaves what was there
    and no temporary file. A link is followed: the file that it leads to is replaced.

    Raises:
        InputError: The path cannot be written to, or is there and is no regular file.
        RegraftError: The disk is full or failing.
    """
    path = _regular(Path(path))
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


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as CSV with Unix line ends; a cell with a line end of any kind is quoted."""
    cells = (
        [f'"{c.replace(chr(34), chr(34) * 2)}"' if _QUOTED.search(c) else c for c in r]
        for r in rows
    )
    return "".join(",".join(row) + "\n" for row in cells)


def write_tensors(path: str | Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file as `atomic_path` describes, with the same errors.

    The header gets a digest of everything in the file, which `check_digest` compares.

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
            save_file(tensors, temporary, metadata={**header, DIGEST: _ZEROS})
            _sort_metadata(temporary)
            seal(temporary)
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


def seal(path: Path) -> None:
    """Put the digest of a safetensors file into its header, which holds 64 zeros there."""
    with path.open("r+b") as file:
        head, match = _head(file)
        if match is None:
            raise ValueError(f"the header of {path} has no place for a digest")
        digest = _digest_of(file, head, match)
        file.seek(match.start(1))
        file.write(digest.encode())


def read_tensors(
    path: str | Path, *, ours: bool = True
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the header's entries and all tensors of a safetensors file that is as it was written.

    Args:
        path: The file.
        ours: Whether only `write_tensors` can have written it; else a file of others, which has no
            digest, is taken as it is.

    Raises:
        ValueError: It cannot be read as safetensors.
        InputError: It is ours, and damaged or changed.
        OSError: It cannot be read.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            check_digest(Path(path), metadata, ours=ours)
            return metadata, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def check_digest(path: Path, metadata: Mapping[str, str], *, ours: bool = False) -> None:
    """Refuse a safetensors file of ours that is not as it was written; files of others are as they are.

    Args:
        path: The file.
        metadata: Its header's own entries. A file of ours has one that begins with `regraft`, and a
            digest of every byte.
        ours: Whether it is ours whatever its header says.

    Raises:
        InputError: The digest is missing, or is of other bytes.
    """
    if not ours and not any(key.startswith("regraft") for key in metadata):
        return
    with path.open("rb") as file:
        head, match = _head(file)
        if match is None or _digest_of(file, head, match) != match[1].decode():
            raise InputError(
                f"{path} is not as Regraft wrote it (its digest is "
                f"{'missing' if match is None else 'of other bytes'}): it was damaged or changed; copy "
                "or make it again"
            )


def _head(file: Any) -> tuple[bytes, re.Match[bytes] | None]:
    """Return the first bytes of a safetensors file, up to the tensors, and the digest in them."""
    length = int.from_bytes(file.read(8), "little")
    file.seek(0)
    head = file.read(8 + min(length, 100_000_000))
    return head, _WRITTEN.search(head)


def _digest_of(file: Any, head: bytes, match: re.Match[bytes]) -> str:
    state = hashlib.sha256(head[: match.start(1)] + _ZEROS.encode() + head[match.end(1) :])
    file.seek(len(head))
    while block := file.read(1 << 22):
        state.update(block)
    return state.hexdigest()


def json_text(value: Mapping[str, Any], *, indent: int = 2, allow_nan: bool = True) -> str:
    """Return an object as JSON text with a digest of all its entries, which `parse_json` compares.

    Raises:
        ValueError: A number is not finite, and none may be.
    """
    plain = {key: item for key, item in value.items() if key != DIGEST}
    whole = {**plain, DIGEST: _json_digest(plain)}
    return json.dumps(whole, indent=indent, allow_nan=allow_nan) + "\n"


def write_json(path: str | Path, value: Mapping[str, Any], *, indent: int = 2) -> None:
    """Write an object with its digest as `atomic_path` describes, with the same errors."""
    write_text(path, json_text(value, indent=indent))


def parse_json(text: str | bytes, *, ours: bool | None = False) -> Any:
    """Return what JSON text says, without the digest that ours has.

    Args:
        text: The text.
        ours: Whether only `json_text` can have made it; else an object without digest is as it is. None
            for what a person may have changed: a digest that does not match is passed over.

    Raises:
        ValueError: It is no JSON, is nested too deeply, or is no UTF-8; or it is ours and not as it was
            written.
    """
    try:
        value = json.loads(text)
        known = value.pop(DIGEST, None) if isinstance(value, dict) else None
        wrong = known is not None and known != _json_digest(value)
        if ours is not None and (wrong or (ours and known is None)):
            raise ValueError(
                "it is not as Regraft wrote it: its digest is of other content"
                if known
                else "it has no digest: an earlier version wrote it, or it was changed by hand"
            )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def load_json(path: Path, *, ours: bool | None = False) -> Any:
    """Return what a JSON file says, checked as `parse_json` does.

    Raises:
        ValueError: As there, or it has more than `MOST_JSON` bytes.
        OSError: It cannot be read.
    """
    if path.stat().st_size > MOST_JSON:
        raise ValueError(f"it has more than {MOST_JSON >> 20} MiB")
    return parse_json(path.read_bytes(), ours=ours)


def _json_digest(value: Any) -> str:
    plain = json.loads(json.dumps(value))  # keys that are no text become it before they are sorted
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def reading(what: Path | str, cure: str) -> Iterator[None]:
    """Turn whatever a malformed file brings about while it is read into one sentence.

    Args:
        what: The file, as the sentence's first words.
        cure: What the user can do, its last words.

    Raises:
        InputError: What was read inside cannot be read, or is not of the form that was expected.
    """
    try:
        yield
    except RegraftError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        if error.filename and str(error.filename) != str(what):
            reason = f"{Path(error.filename).name}: {reason}"
        raise InputError(f"{what} cannot be read ({reason}): {cure}") from error
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        EOFError,
    ) as error:
        text = " ".join(str(error).split())[:200]
        reason = f"{error!r:.200}" if isinstance(error, KeyError) else text
        raise InputError(f"{what} is damaged ({reason}): {cure}") from error


def _regular(path: Path) -> Path:
    """Return the file that a path leads to, links resolved.

    Raises:
        InputError: It is there and is no regular file, or the links go in a circle.
    """
    try:
        path = path.resolve() if path.is_symlink() else path
        mode = path.stat().st_mode
    except FileNotFoundError:
        return path
    except (OSError, RuntimeError):
        return path  # opening it says what is wrong
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise InputError(f"{path} is {kind} and no regular file: give another path")
    return path


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
