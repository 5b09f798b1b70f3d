"""Normalisations: their vectors join the channels, and statistics respect their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .contract import mixed
from .reshape import split
from .rule import Value, Walk, rule


def _join(walk: Walk, x: Value, axis: int, vectors: Sequence[Value | None]) -> Value:
    dims = list(x.dims)
    for vector in vectors:
        if vector is not None:
            walk.ledger.unify(dims[axis], vector.dims[0])
    return Value(dims)


@rule("instance_norm")
def instance_norm(walk: Walk, x: Value, *vectors: Any, **_: Any) -> Value:
    """Each channel over its map: scale and shift follow it."""
    dims = mixed(walk.ledger, x.dims, range(2, len(x.dims)))
    return _join(walk, Value(dims), 1, [v for v in vectors if isinstance(v, Value) and v.dims])


@rule("batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training")
def batch_norm(
    walk: Walk,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None = None,
    variance: Value | None = None,
    *_: Any,
    **__: Any,
) -> Value:
    """Each channel by itself: scale, shift and running statistics follow it."""
    return _join(walk, x, 1, (weight, bias, mean, variance))


@rule("layer_norm", "rms_norm")
def layer_norm(
    walk: Walk,
    x: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    bias: Any = None,
    *_: Any,
    **__: Any,
) -> Value:
    """Over the last dimensions together: invariant to their order, scale and shift follow."""
    first = len(x.dims) - len(normalized_shape)
    x = Value(mixed(walk.ledger, x.dims, range(first, len(x.dims))))
    for vector in (weight, bias):
        if isinstance(vector, Value):
            for i, dim in enumerate(vector.dims):
                walk.ledger.unify(x.dims[first + i], dim)
    return x


@rule("group_norm")
def group_norm(
    walk: Walk,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    *_: Any,
    **__: Any,
) -> Value:
    """Over blocks of channels: blocks move as such, channels move within them."""
    if 1 < groups < x.dims[1].size:
        split(walk.ledger, [x.dims[1]], 0, groups)
    x = Value(mixed(walk.ledger, x.dims, range(1, len(x.dims))))
    return _join(walk, x, 1, (weight, bias))


@rule("prelu", "_prelu_kernel")
def prelu(walk: Walk, x: Value, weight: Value) -> Value:
    """max(0, x) + a min(0, x) with one slope, or one for each channel."""
    if weight.dims and weight.dims[0].size > 1:
        if len(weight.dims) == 1:
            return _join(walk, x, min(1, len(x.dims) - 1), (weight,))
        return _join(walk, x, 1, (Value(weight.dims[1:2]),))
    return x


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(walk: Walk, direction: Value, scale: Value, dim: int = 0) -> Value:
    """Direction over its length along all other axes, times a scale for each slice of one."""
    if len(scale.dims) == len(direction.dims):
        walk.ledger.unify(direction.dims[dim], scale.dims[dim])
    others = [axis for axis in range(len(direction.dims)) if axis != dim % len(direction.dims)]
    return Value(mixed(walk.ledger, direction.dims, others))
