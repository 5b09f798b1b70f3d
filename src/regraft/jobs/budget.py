"""How wide or how sparse a network may be to take so many bytes: what controls of equal bytes need."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from regraft.config import ModelConfig, digest, to_dict
from regraft.models import build


class Numbers(NamedTuple):
    """How many numbers a network has: weights, their output channels, other parameters, statistics."""

    weights: int
    channels: int
    others: int
    statistics: int


_counted: dict[str, Numbers] = {}


def numbers(model: ModelConfig, shape: Mapping[str, Any]) -> Numbers:
    """Return the numbers of a network; `shape` is what `build` needs to know of the data."""
    key = digest({"model": to_dict(model), "shape": dict(shape)})
    if key not in _counted:
        # Ours are counted without a weight being drawn; others are tried on an image as they are built.
        with torch.device("cpu" if set("/:") & set(model.name) else "meta"):
            _counted[key] = _count(build(model, **shape))
    return _counted[key]


def _count(network: nn.Module) -> Numbers:
    matrices = [p for p in network.parameters() if p.dim() > 1]
    return Numbers(
        weights=sum(p.numel() for p in matrices),
        channels=sum(p.shape[0] for p in matrices),
        others=sum(p.numel() for p in network.parameters() if p.dim() < 2),
        statistics=sum(b.numel() for b in network.buffers() if b.is_floating_point()),
    )


def bytes_at(bits: float, *, scale_bytes: int = 2) -> Callable[[Numbers], float]:
    """Return the bytes of weights of so many bits, a scale a channel and float32 for all else."""

    def size(n: Numbers) -> float:
        return n.weights * bits / 8 + 4 * (n.others + n.statistics) + scale_bytes * n.channels

    return size


def widest(
    model: ModelConfig, shape: Mapping[str, Any], target: float, size: Callable[[Numbers], float]
) -> ModelConfig | None:
    """Return the widest network, at most as wide as `model`, that takes `target` bytes, or None.

    None as well for networks of torchvision and timm, which have no width factor.
    """
    if "/" in model.name:
        return None
    best, low, high = None, 0.0, 1.0
    for _ in range(10):
        # Few digits, so that the width that is tried is the width that is named.
        factor = round((low + high) / 2, 4)
        narrow = replace(model, width=model.width * factor)
        if size(numbers(narrow, shape)) <= target:
            best, low = narrow, factor
        else:
            high = factor
    return best


def entropy(d: float) -> float:
    """Return the bits a weight of a mask that keeps a share d: -d log2 d - (1 - d) log2(1 - d)."""
    return sum(-x * math.log2(x) for x in (d, 1 - d) if x > 0)


def density_of(bits: float, *, per_kept: float = 0.0, most: float = 0.5) -> float:
    """Return the density d <= `most` whose mask takes `bits` a weight, with `per_kept` for a kept one.

    That is H(d) + d `per_kept` = `bits`, or `most` where that takes fewer.
    """
    low, high = 0.0, most
    for _ in range(60):
        d = (low + high) / 2
        low, high = (d, high) if entropy(d) + d * per_kept < bits else (low, d)
    return high
