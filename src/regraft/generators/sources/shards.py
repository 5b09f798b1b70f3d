"""Tar shards of labelled images, as webdataset lays them out: KEY.jpg beside KEY.cls or KEY.json."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.data import ImageSet, decode
from regraft.data.decode import picture_endings
from regraft.errors import InputError
from regraft.files import parse_json

MOST_BYTES = 1 << 28
"""Bytes of a member above which a shard is refused: 256 MiB."""


def shards_of(path: Path) -> list[Path]:
    """Return the shards that a path names: a tar file, or those of a folder, sorted."""
    if path.is_file() and path.suffix == ".tar":
        return [path]
    return sorted(path.glob("*.tar")) if path.is_dir() else []


def read_shards(
    shards: list[Path], *, image_size: int | None = None
) -> tuple[ImageSet, tuple[str, ...]]:
    """Return the images of shards and the names of their classes.

    A label is the number in `KEY.cls`, or `label` or `cls` of `KEY.json`, a number or a name; grey images
    stay grey where all are.

    Args:
        shards: Tar files.
        image_size: Side in pixels; by default that of the first image.

    Raises:
        InputError: A shard that cannot be read, an image without a label, or no image.
    """
    pixels: list[Tensor] = []
    labels: list[Any] = []
    for shard in shards:
        try:
            with tarfile.open(shard) as tar:
                size = _read(tar, shard, image_size, pixels, labels)
        except (tarfile.TarError, OSError) as error:
            raise InputError(f"{shard} cannot be read as a tar shard ({error})") from error
        image_size = size
    if not pixels:
        raise InputError(
            f"{shards[0]} holds no image with a label: expected KEY.jpg beside KEY.cls"
        )
    images = torch.stack(pixels)
    if bool((images[:, :1] == images).all()):
        images = images[:, :1].contiguous()
    if all(isinstance(label, int) for label in labels):
        if max(labels) >= len(labels):
            raise InputError(
                f"{shards[0].parent} holds {len(labels)} images and one of class {max(labels)}: classes "
                "are numbered from 0, and each needs an image"
            )
        names = tuple(map(str, range(max(labels) + 1)))
    else:
        names = tuple(sorted(set(map(str, labels))))
    places = {name: i for i, name in enumerate(names)}
    y = torch.tensor([places[str(label)] for label in labels])
    return ImageSet(images, y, len(names)), names


def _read(
    tar: tarfile.TarFile, shard: Path, size: int | None, pixels: list[Tensor], labels: list[Any]
) -> int | None:
    pictures: dict[str, Tensor] = {}
    known: dict[str, Any] = {}
    for member in tar:
        if not member.isfile():
            continue
        if member.size > MOST_BYTES:
            raise InputError(
                f"{shard}: {member.name} has more than {MOST_BYTES >> 20} MiB: expected images and their "
                "labels"
            )
        folder, _, name = member.name.rpartition("/")
        key, _, ending = name.partition(".")
        key, data = f"{folder}/{key}", tar.extractfile(member)
        content = b"" if data is None else data.read()
        if f".{ending.lower()}" in picture_endings():
            picture = _decoded(content, f".{ending}", size)
            size = size or picture.shape[1]
            pictures[key] = picture
        elif ending in ("cls", "json"):
            label = _label(content, ending, f"{shard}: {member.name}")
            if label is not None:
                known[key] = label
    for key, picture in pictures.items():
        if key not in known:
            raise InputError(
                f"{shard}: {key.lstrip('/')} has no label: expected a .cls or .json beside it"
            )
        pixels.append(picture)
        labels.append(known[key])
    return size


def _decoded(content: bytes, ending: str, size: int | None) -> Tensor:
    """Decode as files of folders are decoded; of the first image the shorter side is the size."""
    from regraft.data import picture_size

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"image{ending}"
        path.write_bytes(content)
        own = picture_size(path)
        return decode(path, size or (min(own) if own else 32))


def _label(content: bytes, ending: str, where: str) -> Any:
    text = content.decode("utf-8", "replace").strip()
    try:
        value = parse_json(text) if ending == "json" else text
        if isinstance(value, dict):
            value = value.get("label", value.get("cls"))
        if isinstance(value, str) and value.lstrip("-").isdigit():
            value = int(value)
    except ValueError as error:
        raise InputError(f"{where} is damaged ({error})") from error
    if value is not None and type(value) not in (int, str):
        raise InputError(f"{where} has the label {str(value)[:60]}: expected a number or a name")
    if isinstance(value, int) and value < 0:
        raise InputError(f"{where} is class {value}: classes are numbered from 0")
    return value
