"""Differentiable siamese augmentation: one random transform for real and synthetic images alike.

Every transform takes normalised images [n, C, H, W] and its random values [n, 4] in (-1, 1), and is
differentiable with respect to the images. What it leaves open is filled with 0, the mean colour.

References:
    Zhao and Bilen, "Dataset condensation with differentiable siamese augmentation", ICML 2021
    (section 3.2 and its table of transformations).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regraft import streams
from regraft.data import operations
from regraft.errors import InputError

_PADDING = 1 / 8
_CUTOUT = 1 / 2
_SCALE = 1.2
_ANGLE = math.pi * 15 / 180
_BRIGHTNESS, _SATURATION, _CONTRAST = 1.0, 2.0, 0.5


def transform(kind: str, images: Tensor, values: Tensor) -> Tensor:
    """Apply one transform.

    Args:
        kind: `color`, `crop`, `cutout`, `flip`, `rotate` or `scale`.
        images: Normalised images [n, C, H, W].
        values: Random values in (-1, 1), [n, 4]; equal rows give equal transforms.

    Raises:
        InputError: An unknown `kind`.
    """
    check_transforms((kind,))
    return _TRANSFORMS[kind](images, values.to(images))


def draw_kind(kinds: Sequence[str], *, seed: int, name: str, event: int) -> str:
    """Return which of the transforms step `event` of stream `name` uses, each with equal chance."""
    return kinds[int(streams.integers(seed, name, event, 1, len(kinds)))]


def draw_values(names: Sequence[str], *, seed: int, event: int) -> Tensor:
    """Return a row of values for each name, float32 [len(names), 4]; a row depends on its name."""
    rows = [streams.uniform(seed, f"condense/siamese/{name}", event, 4) for name in names]
    return torch.stack(rows)


def check_transforms(kinds: Sequence[str]) -> None:
    """Refuse unknown transforms.

    Raises:
        InputError: One of `kinds` is unknown.
    """
    for kind in kinds:
        if kind not in _TRANSFORMS:
            raise InputError(
                f"transforms holds {kind!r}: expected some of {', '.join(sorted(_TRANSFORMS))}"
            )


def _unit(values: Tensor, column: int) -> Tensor:
    """Return a column as numbers in (0, 1), [n, 1, 1, 1]."""
    return (values[:, column, None, None, None] + 1) / 2


def _flip(images: Tensor, values: Tensor) -> Tensor:
    return operations.flip(images, (values[:, :1] + 1) / 2)


def _crop(images: Tensor, values: Tensor) -> Tensor:
    """Shift by whole pixels, by at most an eighth of the side."""
    moved = []
    for column, side in ((0, images.shape[2]), (1, images.shape[3])):
        pad = round(side * _PADDING)
        place = ((values[:, column] + 1) / 2 * (2 * pad + 1)).floor().clamp(max=2 * pad)
        moved.append(pad - place.long())
    return operations.shift_by(images, *moved)


def _cutout(images: Tensor, values: Tensor) -> Tensor:
    """Blank a square of half the side, whose centre lies anywhere in the image."""
    blank = operations.square(images, (values[:, :2] + 1) / 2, _CUTOUT)
    return torch.where(blank, images.new_zeros(()), images)


def _affine(images: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Sample where [[a, b], [c, d]] sends each position, from the centre of the image on."""
    zero = torch.zeros_like(a)
    return operations.affine(images, torch.stack((a, b, zero, c, d, zero), dim=1))


def _scale(images: Tensor, values: Tensor) -> Tensor:
    low, high = 1 / _SCALE, _SCALE
    across, down = (low + (high - low) * (values[:, i] + 1) / 2 for i in (0, 1))
    zero = torch.zeros_like(across)
    return _affine(images, across, zero, zero, down)


def _rotate(images: Tensor, values: Tensor) -> Tensor:
    angle = values[:, 0] * _ANGLE
    return _affine(images, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _color(images: Tensor, values: Tensor) -> Tensor:
    """Brightness, then saturation (distance from grey), then contrast (from the image's mean)."""
    images = images + (_unit(values, 0) - 0.5) * _BRIGHTNESS
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * _unit(values, 1) * _SATURATION
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (_unit(values, 2) + _CONTRAST)


_TRANSFORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "rotate": _rotate,
    "scale": _scale,
}
TRANSFORMS = tuple(_TRANSFORMS)
