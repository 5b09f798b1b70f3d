"""Labelled images in memory, and the three splits of a data set."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.errors import InputError

from .lazy import FileSet


@dataclass(frozen=True, eq=False)
class LabelledPixels:
    """What sets of images in one tensor have in common: `images` [N, C, H, W] and `labels` [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height of the images in pixels."""
        return self.images.shape[2]


@dataclass(frozen=True, eq=False)
class ImageSet(LabelledPixels):
    """Labelled images as one tensor.

    Args:
        images: uint8 [N, C, H, W].
        labels: Class of every image, int64 [N], each in [0, num_classes).
        num_classes: Number of classes.

    Raises:
        InputError: A wrong shape or dtype, lengths that differ, or labels out of range.
    """

    num_classes: int

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise InputError(
                f"images of shape {tuple(images.shape)} and dtype {images.dtype}: "
                "expected uint8 [N, C, H, W] with values from 0 to 255"
            )
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise InputError(
                f"labels of shape {tuple(labels.shape)} and dtype {labels.dtype}: "
                f"expected int64 [{len(images)}], one class index for each image"
            )
        wrong = ((labels < 0) | (labels >= self.num_classes)).nonzero()
        if len(wrong):
            first = int(wrong[0])
            raise InputError(
                f"labels out of range: labels[{first}] is {int(labels[first])}, expected "
                f"0 to {self.num_classes - 1} for num_classes={self.num_classes}"
            )

    def subset(self, indices: Tensor) -> ImageSet:
        """Return the images at `indices`, int64 [n], as a new set."""
        at = indices.to(self.labels.device)
        return ImageSet(self.images[at], self.labels[at], self.num_classes)

    def decoded(self) -> Tensor:
        """Return all images as `FileSet.decoded` does."""
        return self.images

    def resized(self, size: int | None) -> ImageSet:
        """Return the images at `size` pixels a side, or as they are without one; see `resize`."""
        if size is None:
            return self
        return ImageSet(resize(self.images, size), self.labels, self.num_classes)

    def to(self, device: torch.device | str | None) -> ImageSet:
        """Return the same set with its tensors on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.num_classes)


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set ready for training.

    `mean` and `std` are per channel, for pixels scaled to [0, 1], from the training split alone.
    `validation` is None when nothing was held out, `test` when a user's folder has none. `rows` are
    name, class and part of each image that has a name, sorted by part.
    """

    name: str
    train: ImageSet | FileSet
    validation: ImageSet | FileSet | None
    test: ImageSet | FileSet | None
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rows: tuple[tuple[str, str, str], ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.train.channels

    @property
    def image_size(self) -> int:
        """Height of the images in pixels."""
        return self.train.image_size


def channel_moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, of pixels scaled to [0, 1].

    The sums are exact integers, so the result does not depend on threads or device. A constant
    channel gets the deviation of one grey level, 1/255, so that dividing by it is safe.

    Args:
        images: uint8 [N, C, H, W].
    """
    total = torch.zeros(images.shape[1], dtype=torch.int64, device=images.device)
    squares = torch.zeros_like(total)
    for chunk in images.split(1024):
        wide = chunk.to(torch.int32)
        total += wide.sum(dim=(0, 2, 3), dtype=torch.int64)
        squares += wide.square_().sum(dim=(0, 2, 3), dtype=torch.int64)
    count = images.numel() // images.shape[1]
    means = [s / count for s in total.tolist()]
    variances = [q / count - m * m for q, m in zip(squares.tolist(), means, strict=True)]
    return (tuple(m / 255 for m in means), tuple(max(v, 1.0) ** 0.5 / 255 for v in variances))


def resize(images: Tensor, size: int) -> Tensor:
    """Resize to `size` by `size` pixels: bilinear, antialiased.

    Args:
        images: uint8 [N, C, H, W].
        size: Side in pixels.

    Returns:
        uint8 [N, C, size, size].
    """
    if images.shape[2:] == (size, size):
        return images
    out = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8)
    for start in range(0, len(images), 1024):
        scaled = torch.nn.functional.interpolate(
            images[start : start + 1024].float(), (size, size), mode="bilinear", antialias=True
        )
        out[start : start + 1024] = scaled.round_().clamp_(0, 255).to(torch.uint8)
    return out
