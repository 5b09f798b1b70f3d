"""CIFAR-10-JPEG: CIFAR-10 as a folder of lossy JPEG files, decoded once.

Figures measured on it are never comparable with published ones on CIFAR-10.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.errors import RegraftError
from regraft.files import read_tensors, write_tensors
from regraft.machine import cache_folder

from .lazy import FileSet

_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def read_cifar10_jpeg(root: Path) -> tuple[Any, ...]:
    """Read ROOT/cifar10/{train,test}/<class>/NNNN.jpg.

    The decoded tensors are kept beside the folders, or in ~/.cache/regraft where that cannot be
    written, under the names and sizes of the files; other files mean decoding again.

    Returns:
        (images uint8 [N, 3, 32, 32], labels int64 [N]) of train and of test, and the classes.

    Raises:
        InputError: Images cannot be decoded.
    """
    folder = root / "cifar10"
    sets = {part: _files(folder / part) for part in ("train", "test")}
    fingerprint = _fingerprint(folder, [p for files in sets.values() for p in files.paths])
    caches = (folder / "decoded.safetensors", cache_folder() / "cifar10_jpeg")
    caches = (caches[0], caches[1] / f"{fingerprint}.safetensors")
    for cache in caches:
        images = _read(cache, fingerprint)
        if images is not None:
            break
    else:
        images = {part: files.decoded() for part, files in sets.items()}
        any(_write(cache, images, fingerprint) for cache in caches)
    return (
        (images["train"], sets["train"].labels),
        (images["test"], sets["test"].labels),
        _CLASSES,
    )


def _files(folder: Path) -> FileSet:
    paths, labels = [], []
    for label, name in enumerate(_CLASSES):
        pictures = sorted((folder / name).glob("*.jpg"))
        paths += pictures
        labels += [label] * len(pictures)
    return FileSet(tuple(paths), torch.tensor(labels, dtype=torch.int64), len(_CLASSES), 32)


def _fingerprint(folder: Path, paths: list[Path]) -> str:
    state = hashlib.blake2b(b"1", digest_size=8)
    for path in paths:
        state.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
    return state.hexdigest()


def _read(cache: Path, fingerprint: str) -> dict[str, Tensor] | None:
    try:
        metadata, images = read_tensors(cache)
    except (OSError, ValueError, RegraftError):
        return None
    if metadata.get("fingerprint") != fingerprint or images.keys() != {"train", "test"}:
        return None
    return images


def _write(cache: Path, images: dict[str, Tensor], fingerprint: str) -> bool:
    """Write the cache whole or not at all; return whether the place could be written."""
    try:
        write_tensors(cache, images, {"fingerprint": fingerprint})
    except RegraftError:
        return False
    return True
