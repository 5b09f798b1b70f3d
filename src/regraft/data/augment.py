"""Augmentation of whole batches, whose randomness belongs to the image and the epoch.

The draws of an epoch are made for the whole data set at once, one for each image, from
`streams`. What happens to image i in epoch e therefore depends on nothing but the seed: not on
batch size, order, number of processes, or where a run was resumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from regraft import streams
from regraft.config import Augmentation
from regraft.errors import InputError

PADDING = 4
_SCALE = (0.08, 1.0)
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
_TRIES = 10


@dataclass(frozen=True, eq=False)
class Draws:
    """What happens to each of n images in one epoch; None where a step does not take place.

    `flip` is bool [n]; `corner` int64 [n, 2] holds top and left of a crop of the full size, and
    `box` float32 [n, 4] top, left, height and width of a crop to be resized, both in pixels of
    the image padded by 4.
    """

    flip: Tensor | None = None
    corner: Tensor | None = None
    box: Tensor | None = None

    def _map(self, function) -> Draws:  # noqa: ANN001
        present = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: function(v) for k, v in present.items() if v is not None})

    def to(self, device: torch.device | str | None) -> Draws:
        """Return the draws on `device`."""
        return self._map(lambda t: t.to(device))

    def __getitem__(self, rows: Tensor) -> Draws:
        """Return the draws of the images at `rows`, int64 [b]."""
        return self._map(lambda t: t[rows])


def draw(kind: Augmentation, n: int, *, image_size: int, seed: int, epoch: int) -> Draws:
    """Draw one epoch's augmentation for `n` images.

    Args:
        kind: `none`, `flip` (half of the images mirrored), `crop` (zero padding of 4, then a
            random crop of the original size), `crop-flip`, or `resized-crop-flip` (zero padding
            of 4, then a box of .08 to 1 of the area and aspect 3/4 to 4/3, resized).
        n: Number of images in the data set.
        image_size: Side of the square images in pixels.
        seed: Seed of the run.
        epoch: Epoch number.

    Raises:
        InputError: An unknown `kind`.
    """
    if kind not in get_args(Augmentation):
        raise InputError(f"augment={kind!r}: expected one of {', '.join(get_args(Augmentation))}")
    flip = corner = box = None
    if kind.endswith("flip"):
        flip = streams.integers(seed, "augment/flip", epoch, n, 2).bool()
    if kind.startswith("crop"):
        corner = streams.integers(seed, "augment/crop", epoch, 2 * n, 2 * PADDING + 1).view(n, 2)
    if kind == "resized-crop-flip":
        box = _boxes(n, image_size + 2 * PADDING, seed, epoch)
    return Draws(flip, corner, box)


def augment(images: Tensor, draws: Draws) -> Tensor:
    """Apply the draws to a batch.

    Args:
        images: uint8 [b, C, H, W].
        draws: One row for each image of the batch.

    Returns:
        [b, C, H, W]: uint8, or float32 with values 0 to 255 after a resized crop.
    """
    if draws.box is not None:
        return _resized_crop(images, draws.box, draws.flip)
    if draws.corner is not None:
        return _crop(images, draws.corner, draws.flip)
    if draws.flip is not None:
        return torch.where(draws.flip[:, None, None, None], images.flip(3), images)
    return images


def _mirrored(positions: Tensor, flip: Tensor | None) -> Tensor:
    """Repeat positions [w] for each image, [b, w] or [1, w], backwards where it is mirrored."""
    if flip is None:
        return positions[None]
    return torch.where(flip[:, None], positions.flip(0), positions)


def _crop(images: Tensor, corner: Tensor, flip: Tensor | None) -> Tensor:
    b, c, h, w = images.shape
    padded = F.pad(images, (PADDING,) * 4)
    rows = corner[:, :1] + torch.arange(h, device=images.device)
    columns = corner[:, 1:] + _mirrored(torch.arange(w, device=images.device), flip)
    index = rows[:, :, None] * padded.shape[3] + columns[:, None, :]
    flat = padded.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, c, -1))
    return flat.view(b, c, h, w)


def _resized_crop(images: Tensor, box: Tensor, flip: Tensor | None) -> Tensor:
    """Bilinear without antialiasing; sampling never leaves the box, as if it had been cut out."""
    h, w = images.shape[2:]
    top, left, height, width = box[:, :, None].unbind(1)
    steps = (torch.arange(h, device=images.device) + 0.5) / h
    across = _mirrored((torch.arange(w, device=images.device) + 0.5) / w, flip)
    y = top + (steps * height - 0.5).clamp(min=0).minimum(height - 1)
    x = left + (across * width - 0.5).clamp(min=0).minimum(width - 1)
    # The padding is zeros, and so is everything that grid_sample reads outside the image.
    y = (2 * (y - PADDING) + 1) / h - 1
    x = (2 * (x - PADDING) + 1) / w - 1
    grid = torch.stack((x[:, None, :].expand(-1, h, -1), y[:, :, None].expand(-1, -1, w)), dim=3)
    return F.grid_sample(images.float(), grid, padding_mode="zeros", align_corners=False)


def _boxes(n: int, side: int, seed: int, epoch: int) -> Tensor:
    """Draw boxes by torchvision's law: the first of ten tries that fits, else everything."""

    def unit(name: str, count: int) -> np.ndarray:
        words = streams.raw(seed, f"augment/{name}", epoch, count)
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    area = side**2 * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * unit("area", n * _TRIES))
    ratio = np.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * unit("ratio", n * _TRIES))
    width = np.rint(np.sqrt(area * ratio)).reshape(n, _TRIES)
    height = np.rint(np.sqrt(area / ratio)).reshape(n, _TRIES)
    fits = (width > 0) & (width <= side) & (height > 0) & (height <= side)
    first = fits.argmax(axis=1)
    rows, any_fits = np.arange(n), fits.any(axis=1)
    width = np.where(any_fits, width[rows, first], side)
    height = np.where(any_fits, height[rows, first], side)
    top = np.floor(unit("top", n) * (side - height + 1))
    left = np.floor(unit("left", n) * (side - width + 1))
    return torch.from_numpy(np.stack((top, left, height, width), axis=1).astype(np.float32))
