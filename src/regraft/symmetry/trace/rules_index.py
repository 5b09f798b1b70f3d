"""Positions by number: what is looked up by values stays, and a fixed order of units moves with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .contract import mixed
from .labels import Dim, pinned
from .rule import Value, Walk, rule
from .rules_shape import cut


@rule("index", "_unsafe_index")
def index(walk: Walk, x: Value, chosen: Sequence[Value | None]) -> Value:
    """Positions by number: the dimension they are on stays, the others go along.

    Numbers that the network itself holds are a cut, in another order or several times.
    """
    axes = [i for i, entry in enumerate(chosen) if entry is not None]
    if len(axes) == 1:
        numbers = chosen[axes[0]]
        if numbers is not None and len(numbers.dims) == 1 and numbers.numbers is not None:
            return cut(walk, x, axes[0], _positions(numbers.numbers, x.dims[axes[0]].size))
    for i in axes:
        walk.ledger.fix(x.dims[i])
    walk.pin([chosen[i] for i in axes])
    shape = walk.output_shape()
    rest = [d for i, d in enumerate(x.dims) if i not in axes]
    count = len(shape) - len(rest)
    together = axes == list(range(axes[0], axes[0] + len(axes)))
    at = axes[0] if together else 0
    picked = pinned(shape[at : at + count])
    return Value(_over_nothing_lost(walk, x, [*rest[:at], *picked, *rest[at:]], axes))


@rule("index_select")
def index_select(walk: Walk, x: Value, dim: int, numbers: Value) -> Value:
    """Positions of one dimension by number."""
    axis = dim % len(x.dims)
    if numbers.numbers is not None:
        return cut(walk, x, axis, _positions(numbers.numbers, x.dims[axis].size))
    walk.ledger.fix(x.dims[axis])
    walk.pin(numbers)
    dims = list(x.dims)
    dims[axis] = Dim(walk.output_shape()[axis])
    return Value(_over_nothing_lost(walk, x, dims, [axis]))


@rule("flip")
def flip(walk: Walk, x: Value, dims: Sequence[int]) -> Value:
    """Dimensions from the end to the start."""
    for dim in dims:
        axis = dim % len(x.dims)
        x = cut(walk, x, axis, range(x.dims[axis].size)[::-1])
    return x


@rule("fliplr", "flipud")
def flipped(walk: Walk, x: Value) -> Value:
    """The second dimension, or the first, from the end to the start."""
    return flip(walk, x, [1 if "lr" in walk.ledger.reason else 0])


@rule("roll")
def roll(walk: Walk, x: Value, shifts: Any, dims: Any = ()) -> Value:
    """Dimensions shifted, what leaves at the end enters at the start."""
    axes = [dims] if isinstance(dims, int) else list(dims)
    by = [shifts] if isinstance(shifts, int) else list(shifts)
    if not axes:
        raise ValueError("all dimensions as one")
    for dim, shift in zip(axes, by, strict=True):
        axis, size = dim % len(x.dims), x.dims[dim % len(x.dims)].size
        x = cut(walk, x, axis, [(i - shift) % size for i in range(size)])
    return x


@rule("gather", "take_along_dim")
def gather(walk: Walk, x: Value, *args: Any, **named: Any) -> Value:
    """Along one dimension whatever position an index says; the others go along where it says the same."""
    first = isinstance(args[0], Value)
    numbers = args[0] if first else args[1]
    dim = (args[1] if len(args) > 1 else named["dim"]) if first else args[0]
    axis = dim % len(x.dims)
    dims = _beside(walk, x, numbers, axis)
    walk.ledger.fix(x.dims[axis])
    walk.pin(numbers)
    dims[axis] = Dim(walk.output_shape()[axis])
    return Value(_over_nothing_lost(walk, x, dims, [axis]))


@rule("scatter", "scatter_add", "scatter_reduce", "_scatter_reduce_two")
def scatter(
    walk: Walk, x: Value, dim: int, numbers: Value, source: Any, *_: Any, **__: Any
) -> Value:
    """Into positions of one dimension that an index says; the others go along where it says the same."""
    axis = dim % len(x.dims)
    dims = _beside(walk, x, numbers, axis)
    if isinstance(source, Value) and source.dims:
        others = _beside(walk, source, numbers, axis)
        dims = _joined(walk, dims, others, axis)
        walk.ledger.fix(source.dims[axis])
    walk.ledger.fix(x.dims[axis])
    walk.pin(numbers)
    dims[axis] = Dim(x.dims[axis].size)
    return Value(_over_nothing_lost(walk, x, dims, [axis]))


@rule("index_add", "index_copy", "index_reduce", "index_fill")
def index_add(
    walk: Walk, x: Value, dim: int, numbers: Value, source: Any, *_: Any, **__: Any
) -> Value:
    """Slices into positions of one dimension; the others go along."""
    axis = dim % len(x.dims)
    dims = list(x.dims)
    if isinstance(source, Value) and source.dims:
        dims = _joined(walk, dims, _loose(walk, source, axis), axis)
        walk.ledger.fix(source.dims[axis])
    walk.ledger.fix(x.dims[axis])
    walk.pin(numbers)
    dims[axis] = Dim(x.dims[axis].size)
    return Value(_over_nothing_lost(walk, x, dims, [axis]))


def _beside(walk: Walk, x: Value, numbers: Value, axis: int) -> list[Dim]:
    """Return the dimensions of x beside the one that is indexed, as far as the index is the same there."""
    dims = _loose(walk, x, axis)
    for i, dim in enumerate(dims):
        at = numbers.dims[i]
        if i != axis and not ((at.kind == "uniform" or at.size == 1) and at.size == dim.size):
            walk.ledger.fix(dim)
            dims[i] = Dim(at.size)
    return dims


def _loose(walk: Walk, x: Value, axis: int) -> list[Dim]:
    """Return the dimensions of x, of which none depends on the one that is indexed."""
    return mixed(walk.ledger, x.dims, [axis])


def _joined(walk: Walk, a: Sequence[Dim], b: Sequence[Dim], axis: int) -> list[Dim]:
    from .contract import broadcast

    left = [Dim(1) if i == axis else d for i, d in enumerate(a)]
    right = [Dim(1) if i == axis else d for i, d in enumerate(b)]
    return broadcast(walk.ledger, left, right)


def _positions(numbers: Tensor, size: int) -> list[int]:
    return [int(n) % size for n in numbers.tolist()]


def _over_nothing_lost(walk: Walk, x: Value, dims: Sequence[Dim], axes: Sequence[int]) -> list[Dim]:
    """Let nothing depend on the dimensions that were indexed."""
    lost = [x.dims[i] for i in axes]
    out = []
    for dim in dims:
        for base in lost:
            if base in dim.over:
                dim = walk.ledger.release(dim, base)
        out.append(dim)
    return out
