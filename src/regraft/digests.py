"""What tells whether files still hold the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import InputError
from .machine import expanded


def check_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Refuse a file of a folder that is there and has another digest than is listed.

    Raises:
        InputError: There is one.
        OSError: It cannot be read.
    """
    for file, known in ((folder / name, known) for name, known in digests.items()):
        if file.is_file() and file_digest(file) != known:
            raise InputError(
                f"{file} is not as Regraft wrote it (the result beside it has the digest of other "
                "bytes): it was damaged or changed; copy or make it again"
            )


def file_digest(
    path: str | Path, length: int | None = None, kind: Callable[[], Any] = hashlib.sha256
) -> str:
    """Return the digest of a file's bytes, or of the first `length`, in hex.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            if length is None:
                return hashlib.file_digest(file, kind).hexdigest()
            state = kind()
            state.update(file.read(length))
            return state.hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def listing_digest(folder: Path, files: Iterable[Path]) -> str:
    """Return the digest of names, sizes and times of files: it tells whether a folder still holds the same.

    Raises:
        OSError: One cannot be looked at.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        about, name = path.stat(), path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def weights_digest(path: str | Path) -> str:
    """Return the digest of a checkpoint: of its file, or of all tensor files of a folder of shards.

    Raises:
        InputError: There is none, or one cannot be read.
    """
    path = expanded(path)
    if (path / "model.safetensors").is_file():
        return file_digest(path / "model.safetensors")
    folder = path.parent if path.name.endswith(".index.json") else path
    if not folder.is_dir():
        return file_digest(path)
    ends = (".safetensors", ".index.json", ".bin", ".pt", ".pth")
    parts = [
        f"{f.name} {file_digest(f)}\n" for f in sorted(folder.iterdir()) if f.name.endswith(ends)
    ]
    return hashlib.sha256("".join(parts).encode()).hexdigest()
