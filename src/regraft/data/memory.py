"""Whether the images of a folder lie in memory or stay in their files: decided here, for every command."""

from __future__ import annotations

from typing import Any

import torch

from regraft.errors import InputError

from .images import ImageSet, channel_moments
from .lazy import FileSet
from .loader import FolderLoader, TensorLoader

MOST_BYTES = 2 << 30
"""Bytes that the decoded images of a data set may take in memory."""

_SAMPLE = 2048
_NEEDS = (
    "needs images in memory, and these take more than 2 GiB there: take fewer of them, or smaller ones "
    "(--image-size)"
)


def placed(*parts: ImageSet | FileSet | None) -> tuple[Any, ...]:
    """Return parts of a data set decoded where all of them together fit, else as they are.

    Raises:
        InputError: Files cannot be decoded.
    """
    files = [part for part in parts if isinstance(part, FileSet)]
    if sum(part.nbytes for part in files) > MOST_BYTES:
        return parts
    return tuple(
        ImageSet(part.decoded(), part.labels, part.num_classes)
        if isinstance(part, FileSet)
        else part
        for part in parts
    )


def in_memory(images: Any, what: str) -> ImageSet:
    """Return images that lie in memory as they are, and refuse others.

    Args:
        images: A part of `Splits`.
        what: What needs them there, for the error.

    Raises:
        InputError: They stay in their files: the data set does not fit.
    """
    if not isinstance(images, ImageSet):
        raise InputError(f"{what} {_NEEDS}")
    return images


def refuse_too_many(count: int, shape: tuple[int, int, int], what: str) -> None:
    """Refuse images of a shape (C, H, W) as `in_memory` does, before any is decoded."""
    if count * torch.Size(shape).numel() > MOST_BYTES:
        raise InputError(f"{what} {_NEEDS}")


def moments(images: ImageSet | FileSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel; see `channel_moments`.

    Of images that stay in their files at most 2,048 are read, at even distances.
    """
    every = 1 if isinstance(images, ImageSet) else max(1, -(-len(images) // _SAMPLE))
    some = images if every == 1 else images.subset(torch.arange(0, len(images), every))
    return channel_moments(some.decoded())


def batches(images: ImageSet | FileSet, **options: Any) -> TensorLoader | FolderLoader:
    """Return batches of images, wherever they lie; `options` are those of `TensorLoader`."""
    if isinstance(images, ImageSet):
        return TensorLoader(images, **options)
    return FolderLoader(images, **options)
