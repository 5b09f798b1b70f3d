"""A tensor of a term as one row a unit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .blocks import Term


def rows(tensor: Tensor, term: Term, moved: Mapping[int, Tensor]) -> Tensor:
    """Return a term's tensor as one row a unit, [m n, k].

    Args:
        tensor: The tensor.
        term: Where the units lie.
        moved: Axis -> which positions of it to take, in order; all as they are by default.
    """
    moved = dict(moved)
    if term.keep is not None:
        axis, kept = term.keep
        moved[axis] = moved[axis][kept] if axis in moved else kept
    units = term.index.shape[0] * term.index.shape[1]
    if term.over is None:
        own = term.index.flatten()
        own = moved.pop(term.axis)[own] if term.axis in moved else own
        if len(own) != tensor.shape[term.axis] or not _in_order(own):
            tensor = tensor.index_select(term.axis, own.to(tensor.device))
        for axis, index in moved.items():
            if len(index) != tensor.shape[axis] or not _in_order(index):
                tensor = tensor.index_select(axis, index.to(tensor.device))
        return tensor.movedim(term.axis, 0).reshape(units, -1)
    for axis, index in moved.items():
        tensor = tensor.index_select(axis, index.to(tensor.device))
    moved_axes = tensor.movedim((term.over, term.axis), (0, 1))
    slices, index = (t.to(tensor.device) for t in (term.slices, term.index) if t is not None)
    entries = moved_axes[slices[:, None, :, None], index[:, :, None, :]]
    return entries.reshape(units, -1)


def _in_order(index: Tensor) -> bool:
    return bool(torch.equal(index, torch.arange(len(index))))
