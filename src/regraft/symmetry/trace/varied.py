"""Masks and tables with other entries, so that the proof does not rest on those of a fresh network.

A mask starts with ones alone, and a wrong permutation of those would pass. Other entries must be ones
the network can take, above all where they are an index: they are the tensor's own in another order,
and where all are alike, half of them are its opposite.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_PLAIN = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""Dtypes that are not of floating point, and no packed or quantised numbers."""


def varied(state: Mapping[str, Tensor], names: Iterable[str], seed: int) -> dict[str, Tensor]:
    """Return the named tensors with other entries, tied ones alike; bool or integer, of any shape."""
    values: dict[str, Tensor] = {}
    by_tensor: dict[int, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        tensor = state[name]
        if id(tensor) not in by_tensor:
            order = torch.randperm(tensor.numel(), generator=generator)
            flat = tensor.flatten()
            if bool((flat == flat[0]).all()):
                half = order < (len(flat) + 1) // 2
                flat = torch.where(half, _opposite(flat), flat)
            else:
                flat = flat[order]
            by_tensor[id(tensor)] = flat.reshape(tensor.shape)
        values[name] = by_tensor[id(tensor)]
    return values


def whole(state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors of bools or integers that have several entries."""
    return [name for name, tensor in state.items() if tensor.dtype in _PLAIN and tensor.numel() > 1]


def _opposite(tensor: Tensor) -> Tensor:
    return (tensor == 0).to(tensor.dtype)


__all__ = ["varied", "whole"]
