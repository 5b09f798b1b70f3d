"""Elementwise functions, reductions and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .contract import broadcast, drop
from .labels import pinned
from .walk import Value, Walk, rule

_UNARY = """
abs acos acosh alias asin asinh atan atanh bernoulli bitwise_not ceil celu clamp clamp_max clamp_min
clone contiguous cos cosh detach detach_copy dropout alpha_dropout feature_dropout elu erf erfc exp exp2
expm1 floor frac gelu hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu lgamma
lift_fresh lift_fresh_copy log log10 log1p log2 log_sigmoid logical_not logit mish nan_to_num neg
positive reciprocal relu relu6 round rrelu rsqrt selu sigmoid sign silu sin sinh softplus softshrink
softsign sqrt square tan tanh threshold to type_as trunc view_as_real_copy _to_copy zero pow_scalar
float double half bfloat16 masked_fill_scalar
"""

_BROADCAST = """
add addcdiv addcmul atan2 bitwise_and bitwise_or bitwise_xor copysign div eq floor_divide fmod ge gt
heaviside hypot le lerp logaddexp logaddexp2 logical_and logical_or logical_xor lt masked_fill maximum
minimum mul ne pow remainder rsub sub true_divide where xlogy __and__ __or__ __xor__ copy
"""

_REDUCTIONS = """
sum mean amax amin max min prod std var norm linalg_vector_norm logsumexp any all nansum nanmean
"""


@rule(*_UNARY.split())
def unary(walk: Walk, x: Value, *rest: Any, **_: Any) -> Value:
    """A function of each element by itself."""
    tensors = [r for r in rest if isinstance(r, Value)]
    if tensors and _moving(tensors):
        return Value(broadcast(walk.ledger, x.dims, *(t.dims for t in tensors)))
    return Value(x.dims)


@rule(*_BROADCAST.split())
def elementwise(walk: Walk, *args: Any, **kwargs: Any) -> Value:
    """A function of the elements at one place of several tensors, which broadcast."""
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Value)]
    return Value(broadcast(walk.ledger, *(t.dims for t in tensors)))


def _moving(values: Sequence[Value]) -> bool:
    return any(dim.moves for value in values for dim in value.dims)


@rule("fill")
def fill(walk: Walk, x: Value, *_: Any) -> Value:
    """One value everywhere, written into a tensor that may be part of another."""
    return Value(x.dims)


@rule(*_REDUCTIONS.split())
def reduction(walk: Walk, x: Value, *args: Any, **kwargs: Any) -> Any:
    """A symmetric function along some dimensions: their order does not matter."""
    others = [a for a in args if isinstance(a, Value)]
    if others:  # max and min of two tensors
        return Value(broadcast(walk.ledger, x.dims, *(t.dims for t in others)))
    shape = _first_shape(walk)
    axes = _reduced_axes(walk, x, args, kwargs)
    left = drop(walk.ledger, x.dims, axes)
    if len(shape) == len(x.dims):  # keepdim
        kept = iter(left)
        left = [pinned([1])[0] if i in axes else next(kept) for i in range(len(x.dims))]
    if isinstance(walk.node and walk.node.meta["val"], tuple | list):
        # The index of the largest is a position: the reduced dimension cannot move.
        for axis in axes:
            walk.ledger.fix(x.dims[axis])
        return [Value(left), Value(left)]
    return Value(left)


def _first_shape(walk: Walk) -> tuple[int, ...]:
    meta = walk.node.meta["val"] if walk.node is not None else ()
    return walk.output_shape(0) if isinstance(meta, tuple | list) else walk.output_shape()


def _reduced_axes(walk: Walk, x: Value, args: Sequence[Any], kwargs: dict[str, Any]) -> set[int]:
    n = len(x.dims)
    schema = getattr(walk.node and walk.node.target, "_schema", None)
    names = [a.name for a in schema.arguments][1:] if schema is not None else []
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    dim = given.get("dim")
    if dim is None or dim == []:
        return set(range(n))
    chosen = [dim] if isinstance(dim, int) else list(dim)
    return {d % n for d in chosen}


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin")
def softmax(walk: Walk, x: Value, *_: Any, **__: Any) -> Value:
    """exp(x) over its sum: permutes with its input."""
    return Value(x.dims)


@rule("cumsum", "cumprod", "logcumsumexp", "flip", "roll", "sort", "topk", "argsort", "diff")
def ordered(walk: Walk, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Functions of the order along a dimension, which therefore stays."""
    axes = [a for a in args if isinstance(a, int)] + [kwargs.get("dim", -1)]
    chosen = [a for arg in args if isinstance(arg, list | tuple) for a in arg]
    name = str(walk.node.target) if walk.node is not None else ""
    if "roll" in name:
        shifted = args[1] if len(args) > 1 else kwargs.get("dims", [])
        axes, chosen = [], list(shifted) if isinstance(shifted, list | tuple) else [shifted]
        if not chosen:
            axes = list(range(len(x.dims)))
    if "flip" in name:
        axes = []
    for axis in {a % len(x.dims) for a in (*axes, *chosen) if -len(x.dims) <= a < len(x.dims)}:
        walk.ledger.fix(x.dims[axis])
    meta = walk.node.meta["val"] if walk.node is not None else None
    if isinstance(meta, tuple | list):
        return [_resized(x, part.shape) for part in meta]
    return _resized(x, walk.output_shape())


def _resized(x: Value, shape: Sequence[int]) -> Value:
    return Value([d if d.size == s else pinned([s])[0] for d, s in zip(x.dims, shape, strict=True)])


@rule("argmax", "argmin")
def argmax(walk: Walk, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    """The index of the largest is a position, which therefore stays."""
    axes = set(range(len(x.dims))) if dim is None else {dim % len(x.dims)}
    for axis in axes:
        walk.ledger.fix(x.dims[axis])
    left = drop(walk.ledger, x.dims, axes)
    return Value(left) if not keepdim else _resized(x, walk.output_shape())


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "max_pool2d_with_indices", "lp_pool2d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_nearest_exact2d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_adaptive_avg_pool2d", "im2col_positions",
)  # fmt: skip
def pool(walk: Walk, x: Value, *_: Any, **__: Any) -> Any:
    """Pooling and resizing: channels by themselves, the positions of the map stay."""
    meta = walk.node.meta["val"] if walk.node is not None else None
    parts = meta if isinstance(meta, tuple | list) else [meta]
    name = str(walk.node.target) if walk.node is not None else ""
    spatial = next((int(digit) for digit in "123" if f"{digit}d" in name), 2)
    first = len(x.dims) - spatial
    for dim in x.dims[first:]:
        walk.ledger.fix(dim)
    found = [Value([*x.dims[:first], *pinned(part.shape[first:])]) for part in parts]
    return found if isinstance(meta, tuple | list) else found[0]


@rule(
    "full", "zeros", "ones", "empty", "full_like", "zeros_like", "ones_like", "empty_like",
    "new_zeros", "new_ones", "new_full", "new_empty", "scalar_tensor",
)  # fmt: skip
def constant(walk: Walk, *_: Any, **__: Any) -> Value:
    """One value everywhere: uniform, unless something is written into it later."""
    from .labels import Dim

    shape = walk.output_shape()
    if walk.node is not None and any(_may_write(user) for user in walk.node.users):
        return Value(pinned(shape))
    return Value([Dim(size, "uniform") for size in shape])


def _may_write(user: Any) -> bool:
    from .walk import name_is_in_place

    views = (
        "view",
        "select",
        "slice",
        "expand",
        "permute",
        "transpose",
        "squeeze",
        "alias",
        "chunk",
    )
    return name_is_in_place(user.target) or any(v in str(user.target) for v in views)


@rule(
    "arange", "linspace", "tril", "triu", "eye", "one_hot", "bucketize", "nonzero", "rand", "randn"
)
def fixed(walk: Walk, *args: Any, **__: Any) -> Value:
    """Tensors whose entries differ by position."""
    walk.pin(args)
    return Value(pinned(walk.output_shape()))


@rule(
    "_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_size", "sym_constrain_range"
)
def nothing(walk: Walk, *_: Any, **__: Any) -> None:
    """Checks that the export left behind."""


@rule("glu")
def glu(walk: Walk, x: Value, dim: int = -1) -> Value:
    """Gated unit a * sigmoid(b) of the halves a, b: both are permuted alike."""
    from .rules_shape import cut

    axis = dim % len(x.dims)
    half = x.dims[axis].size // 2
    a = cut(walk, x, axis, range(half))
    b = cut(walk, x, axis, range(half, 2 * half))
    return Value(broadcast(walk.ledger, a.dims, b.dims))
