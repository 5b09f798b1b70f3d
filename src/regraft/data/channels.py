"""Grey images as colour images and the other way round, so that they fit a network."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from regraft.errors import InputError

from .images import ImageSet, Splits
from .lazy import FileSet, grey
from .memory import moments


def with_channels(splits: Splits, channels: int) -> Splits:
    """Return the same images with 1 or 3 channels, and their mean and std anew.

    Colours become their luma; grey becomes three equal channels.

    Raises:
        InputError: Another number of channels than these two, asked or found.
    """
    if channels == splits.channels:
        return splits
    if {channels, splits.channels} != {1, 3}:
        raise InputError(
            f"--channels {channels}: images of {splits.channels} channel(s) can only be brought to 1 or 3"
        )
    train = _converted(splits.train, channels)
    held_out, test = (
        None if part is None else _converted(part, channels)
        for part in (splits.validation, splits.test)
    )
    mean, std = moments(train)
    return replace(splits, train=train, validation=held_out, test=test, mean=mean, std=std)


def _converted(images: ImageSet | FileSet, channels: int) -> ImageSet | FileSet:
    if isinstance(images, FileSet):
        return replace(images, channels=channels)
    return ImageSet(to_channels(images.images, channels), images.labels, images.num_classes)


def to_channels(pixels: Tensor, channels: int) -> Tensor:
    """Return uint8 images [n, 1 or 3, H, W] with 1 or 3 channels."""
    if pixels.shape[1] == channels:
        return pixels
    return grey(pixels) if channels == 1 else pixels.expand(-1, 3, -1, -1).contiguous()
