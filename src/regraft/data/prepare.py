"""Splits made into others: images turned, classes left out, another normalisation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regraft.config import DataConfig, check
from regraft.errors import InputError

from .channels import with_channels
from .images import Splits, channel_moments
from .memory import in_memory

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def prepared(splits: Splits, config: DataConfig) -> Splits:
    """Return splits with `channels`, `rotate`, `only_classes` and `normalize` of a configuration applied.

    Class names and the number of classes stay as they are, and so does what a label means.

    Args:
        splits: A data set as it was loaded.
        config: What is asked of it.

    Raises:
        InputError: An angle that is no number, a class that does not exist, an unknown
            normalisation or one for another number of channels, or images that are not in memory.
    """
    check(config)
    if config.channels is not None:
        splits = with_channels(splits, config.channels)
    if config.rotate % 360 or config.only_classes:
        splits = _changed(splits, config.rotate, config.only_classes)
    if config.normalize == "own":
        return splits
    if config.normalize == "none":
        channels = splits.channels
        return replace(splits, mean=(0.0,) * channels, std=(1.0,) * channels)
    if config.normalize != "imagenet":
        raise InputError(f"normalize={config.normalize!r}: expected 'own', 'none' or 'imagenet'")
    if splits.channels != 3:
        raise InputError(
            f"normalize='imagenet' is for 3 channels and {splits.name} has {splits.channels}: take "
            "'own' or 'none'"
        )
    return replace(splits, mean=_IMAGENET[0], std=_IMAGENET[1])


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Turn square images counterclockwise about their centre, with black behind them.

    Multiples of 90 degrees are exact; other angles are bilinear.

    Args:
        images: uint8 [N, C, H, H].
        degrees: The angle.

    Returns:
        uint8 [N, C, H, H].

    Raises:
        InputError: The images are not square.
    """
    if images.shape[-1] != images.shape[-2]:
        raise InputError(f"images of {list(images.shape[-2:])} pixels: only square ones are turned")
    quarters, rest = divmod(degrees % 360, 90)
    if not rest:
        return torch.rot90(images, int(quarters), (-2, -1)).contiguous()
    angle = math.radians(rest)
    # From where in the old image a place in the new one is read; y points down.
    c, s = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[c, -s, 0.0], [s, c, 0.0]])
    out = torch.empty_like(images)
    for start in range(0, len(images), 1024):
        part = images[start : start + 1024].float()
        grid = torch.nn.functional.affine_grid(
            matrix.expand(len(part), 2, 3), list(part.shape), align_corners=False
        )
        read = torch.nn.functional.grid_sample(part, grid, align_corners=False)
        out[start : start + 1024] = read.round_().clamp_(0, 255).to(torch.uint8)
    # Last, so that quarter turns are exact whatever is turned.
    return torch.rot90(out, int(quarters), (-2, -1)).contiguous()


def _changed(splits: Splits, degrees: float, classes: tuple[int, ...]) -> Splits:
    wrong = [c for c in classes if not 0 <= c < splits.num_classes]
    if wrong:
        raise InputError(
            f"only_classes holds {wrong[0]}: {splits.name} has the classes 0 to "
            f"{splits.num_classes - 1}"
        )
    parts: dict[str, Any] = {}
    for name in ("train", "validation", "test"):
        images = getattr(splits, name)
        if images is None:
            continue
        images = in_memory(images, f"{splits.name} turned, or of some classes,")
        if classes:
            images = images.subset(torch.isin(images.labels, torch.tensor(classes)).nonzero()[:, 0])
        parts[name] = replace(images, images=rotate(images.images, degrees))
    mean, std = channel_moments(parts["train"].images)
    return replace(splits, **parts, mean=mean, std=std)
