"""Channels traded for positions of a map, and windows that slide over one."""

from __future__ import annotations

from typing import Any

from .contract import broadcast, mixed
from .labels import Dim, pinned
from .reshape import merge, split
from .rule import Value, Walk, rule


@rule("im2col")
def im2col(walk: Walk, x: Value, *_: Any, **__: Any) -> Value:
    """[b, c, h, w] -> [b, c k, windows]: each channel becomes a block of the window's positions."""
    shape = walk.output_shape()
    for dim in x.dims[-2:]:
        walk.ledger.fix(dim)
    lead = mixed(walk.ledger, x.dims, [-1, -2])[:-2]
    dims = merge(walk.ledger, [*lead, Dim(shape[-2] // lead[-1].size)], len(lead) - 1)
    return Value([*dims, *pinned(shape[-1:])])


@rule("col2im")
def col2im(walk: Walk, x: Value, *_: Any, **__: Any) -> Value:
    """[b, c k, windows] -> [b, c, h, w]: windows summed where they overlap."""
    shape = walk.output_shape()
    walk.ledger.fix(x.dims[-1])
    dims = split(walk.ledger, list(x.dims[:-1]), len(x.dims) - 2, shape[-3])
    walk.ledger.fix(dims[-1])
    return Value([*dims[:-1], *pinned(shape[-2:])])


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sample(walk: Walk, x: Value, grid: Value, *_: Any, **__: Any) -> Value:
    """[b, c, h, w] read at the places of a grid [b, h', w', 2]: each channel by itself."""
    dims = mixed(walk.ledger, x.dims, range(2, len(x.dims)))
    walk.ledger.fix(grid.dims[-1], "they are coordinates")
    for dim in (*dims[2:], *grid.dims[1:-1]):
        walk.ledger.fix(dim)
    batch = broadcast(walk.ledger, dims[:1], grid.dims[:1])
    return Value([*batch, dims[1], *pinned(walk.output_shape()[2:])])


@rule("unfold")
def unfold(walk: Walk, x: Value, dimension: int, size: int, step: int) -> Value:
    """Windows along one dimension, their positions as a last one."""
    axis, shape = dimension % len(x.dims), walk.output_shape()
    walk.ledger.fix(x.dims[axis])
    left = [walk.ledger.release(d, x.dims[axis]) if x.dims[axis] in d.over else d for d in x.dims]
    return Value([*left[:axis], Dim(shape[axis]), *left[axis + 1 :], Dim(size)])


@rule("pixel_shuffle")
def pixel_shuffle(walk: Walk, x: Value, factor: int) -> Value:
    """[b, c r r, h, w] -> [b, c, h r, w r]: blocks of r r channels move, each in its order."""
    dims = mixed(walk.ledger, x.dims, [-1, -2])
    dims = split(walk.ledger, dims, len(dims) - 3, x.dims[-3].size // factor**2)
    walk.ledger.fix(dims[-3])
    shape = walk.output_shape()
    return Value([*dims[:-3], *pinned(shape[-2:])])


@rule("pixel_unshuffle")
def pixel_unshuffle(walk: Walk, x: Value, factor: int) -> Value:
    """[b, c, h r, w r] -> [b, c r r, h, w]: each channel becomes a block in a fixed order."""
    for dim in x.dims[-2:]:
        walk.ledger.fix(dim)
    lead = mixed(walk.ledger, x.dims, [-1, -2])[:-2]
    dims = merge(walk.ledger, [*lead, Dim(factor**2)], len(lead) - 1)
    return Value([*dims, *pinned(walk.output_shape()[-2:])])


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(walk: Walk, x: Value, groups: int) -> Value:
    """[b, g n, ...] -> channels in the order of [n, g]."""
    dims = split(walk.ledger, list(x.dims), 1, groups)
    dims[1], dims[2] = dims[2], dims[1]
    return Value(merge(walk.ledger, dims, 1))
