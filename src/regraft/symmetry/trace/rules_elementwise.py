"""Elementwise functions, reductions and pooling."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from .contract import broadcast, drop, mixed
from .labels import Dim, pinned
from .rule import Value, Walk, name_of, rule

_UNARY = """
abs acos acosh alias asin asinh atan atanh bernoulli bitwise_not ceil celu clamp clamp_max clamp_min
clone contiguous cos cosh detach detach_copy dropout alpha_dropout feature_dropout elu erf erfc exp exp2
expm1 floor frac gelu hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu lgamma
lift_fresh lift_fresh_copy log log10 log1p log2 log_sigmoid logical_not logit mish nan_to_num neg
positive reciprocal relu relu6 round rrelu rsqrt selu sigmoid sign silu sin sinh softplus softshrink
softsign sqrt square tan tanh threshold to trunc _to_copy zero conj _conj _conj_physical resolve_conj
real imag angle float double half bfloat16
"""

_SAME = ("alias", "clone", "contiguous", "detach", "detach_copy", "lift_fresh", "lift_fresh_copy")

_BROADCAST = """
add addcdiv addcmul atan2 complex polar bitwise_and bitwise_or bitwise_xor copysign div eq floor_divide fmod
ge gt heaviside hypot le lerp logaddexp logaddexp2 logical_and logical_or logical_xor lt masked_fill maximum
minimum mul ne pow remainder rsub sub true_divide where xlogy __and__ __or__ __xor__ copy
"""

_REDUCTIONS = """
sum mean amax amin max min prod std var norm linalg_vector_norm logsumexp any all nansum nanmean
median nanmedian mode kthvalue var_mean std_mean aminmax
"""

_TWO = ("var_mean", "std_mean", "aminmax")
"""Reductions of which both results are values, and none is a position."""


@rule(*_UNARY.split())
def unary(walk: Walk, x: Value, *rest: Any, **_: Any) -> Value:
    """A function of each element by itself."""
    tensors = [r for r in rest if isinstance(r, Value) and r.dims]
    name = name_of(walk.node.target) if walk.node is not None else ""
    dims = broadcast(walk.ledger, x.dims, *(t.dims for t in tensors))
    return Value(dims, numbers=x.numbers if name in _SAME and not tensors else None)


@rule(*_BROADCAST.split())
def elementwise(walk: Walk, *args: Any, **kwargs: Any) -> Value:
    """A function of the elements at one place of several tensors, which broadcast."""
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Value)]
    if len(tensors) == 2:
        tensors = [by_blocks(walk, *tensors), by_blocks(walk, *tensors[::-1])]
    return Value(broadcast(walk.ledger, *(t.dims for t in tensors)))


def by_blocks(walk: Walk, x: Value, other: Value) -> Value:
    """Return a parameter [..., heads, n] that meets heads with units of their own so that it has them too.

    It must be used here alone: then nothing else is said of its axes.
    """
    if x.parameter is None or x.parameter in walk.tied or not walk.alone(x.parameter):
        return x
    shift = len(other.dims) - len(x.dims)
    for axis, dim in enumerate(x.dims):
        facing = other.dims[axis + shift] if axis + shift >= 0 else None
        for at, base in enumerate(x.dims):
            block = other.dims[at + shift] if at + shift >= 0 else None
            if (
                facing is None
                or block is None
                or block not in facing.over
                or base.size != block.size
            ):
                continue
            if block.moves and dim.size == facing.size and base.moves and not dim.over:
                walk.ledger.unify(base, block)
                new = walk.regroup(x, axis, base, at)
                return Value([new if i == axis else d for i, d in enumerate(x.dims)])
    return x


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
        if walk.node is not None and name_of(walk.node.target) in _TWO:
            return [Value(left), Value(left)]
        # The index of the largest is a position: where it is read, the dimension cannot move.
        if walk.node is not None and any(reads(user, 1) for user in walk.node.users):
            for axis in axes:
                walk.ledger.fix(x.dims[axis], f"its order matters to {walk.ledger.reason}")
        return [Value(left), Value(left)]
    return Value(left)


def reads(user: Any, index: int) -> bool:
    """Whether a user takes one of several results, and is itself used."""
    takes = user.target is operator.getitem and user.args[1] == index
    return bool(user.users) if takes else user.target is not operator.getitem


def _first_shape(walk: Walk) -> tuple[int, ...]:
    meta = walk.node.meta["val"] if walk.node is not None else ()
    return walk.output_shape(0) if isinstance(meta, tuple | list) else walk.output_shape()


def _arguments(walk: Walk, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments after the first tensor by their names, defaults included."""
    schema = getattr(walk.node and walk.node.target, "_schema", None)
    if schema is None:
        return dict(kwargs)
    defaults = {a.name: a.default_value for a in schema.arguments[1:] if a.has_default_value()}
    names = [a.name for a in schema.arguments][1:]
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}


def _reduced_axes(walk: Walk, x: Value, args: Sequence[Any], kwargs: dict[str, Any]) -> set[int]:
    n, named = len(x.dims), _arguments(walk, args, kwargs)
    dim = named.get("dim")
    if dim is None or dim == []:
        return set(range(n))
    chosen = [dim] if isinstance(dim, int) else list(dim)
    return {d % n for d in chosen}


@rule("cosine_similarity", "pairwise_distance")
def similarity(walk: Walk, x: Value, y: Value, *args: Any, **kwargs: Any) -> Value:
    """Inner product or distance of two tensors along a dimension, the others broadcast."""
    dims = broadcast(walk.ledger, x.dims, y.dims)
    axis = -1
    if "cosine" in walk.ledger.reason:
        axis = args[0] if args else kwargs.get("dim", 1)
    left = drop(walk.ledger, dims, [axis % len(dims)])
    return Value([*left, Dim(1)] if len(left) < len(walk.output_shape()) else left)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "softmin")
def softmax(walk: Walk, x: Value, dim: int | None = None, *_: Any, **__: Any) -> Value:
    """exp(x) over its sum along a dimension: permutes with its input."""
    if dim is None:
        raise ValueError("which dimension depends on the input")
    return Value(mixed(walk.ledger, x.dims, [dim]))


_FOURIER = [f"fft_{kind}fft{n}" for kind in ("", "i", "r", "ir") for n in ("", "2", "n")]


@rule("cumsum", "cumprod", "logcumsumexp", "sort", "topk", "argsort", "diff", *_FOURIER)
def ordered(walk: Walk, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Functions of the order along a dimension, which therefore stays."""
    named = _arguments(walk, args, kwargs)
    default = None if "dims" in named or "dim" not in named else -1
    chosen = named.get("dims", named.get("dim", default))
    axes = [chosen] if isinstance(chosen, int) else list(chosen or range(len(x.dims)))
    x = Value(mixed(walk.ledger, x.dims, axes))
    for axis in axes:
        walk.ledger.fix(x.dims[axis], f"its order matters to {walk.ledger.reason}")
    fixed = {axis % len(x.dims) for axis in axes}
    for other in (*args, *kwargs.values()):  # what diff puts before or behind
        if isinstance(other, Value):
            walk.ledger.fix(other.dims[axes[0]])
            pairs = zip(x.dims, other.dims, strict=True)
            x = Value(
                [d if i in fixed else walk.ledger.unify(d, o) for i, (d, o) in enumerate(pairs)]
            )
    left = Value([Dim(d.size) if i in fixed else d for i, d in enumerate(x.dims)])
    meta = walk.node.meta["val"] if walk.node is not None else None
    if isinstance(meta, tuple | list):
        return [_resized(left, part.shape) for part in meta]
    return _resized(left, walk.output_shape())


@rule("type_as")
def type_as(walk: Walk, x: Value, *_: Any) -> Value:
    """A tensor in the dtype of another, of which nothing else is read."""
    return Value(x.dims)


@rule("view_as_complex")
def view_as_complex(walk: Walk, x: Value) -> Value:
    """Pairs of numbers as complex ones: the pairs stay together."""
    walk.ledger.fix(x.dims[-1], "it is the real and imaginary part of numbers")
    return Value(drop(walk.ledger, x.dims, [len(x.dims) - 1]))


@rule("view_as_real")
def view_as_real(walk: Walk, x: Value) -> Value:
    """Complex numbers as pairs."""
    return Value([*x.dims, Dim(2)])


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
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "lp_pool1d", "lp_pool2d", "lp_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_nearest_exact2d",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_adaptive_avg_pool2d", "im2col_positions",
)  # fmt: skip
def pool(walk: Walk, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Pooling and resizing: channels by themselves, positions of the map stay unless each is by itself.

    What is pooled as a whole may be in any order.
    """
    meta = walk.node.meta["val"] if walk.node is not None else None
    parts = meta if isinstance(meta, tuple | list) else [meta]
    name = str(walk.node.target) if walk.node is not None else ""
    spatial = next((int(digit) for digit in "123" if f"{digit}d" in name), 2)
    first = len(x.dims) - spatial
    alone, whole = _windows(walk, x, args, kwargs, spatial)
    axes = [axis for axis in range(first, len(x.dims)) if axis not in alone]
    dims = mixed(walk.ledger, x.dims, axes)
    for axis in axes:
        if axis not in whole or len(parts) > 1:  # where the largest is, is a position
            walk.ledger.fix(dims[axis])
    results = [
        Value([d if i < first or i in alone else Dim(part.shape[i]) for i, d in enumerate(dims)])
        for part in parts
    ]
    return results if isinstance(meta, tuple | list) else results[0]


def _windows(
    walk: Walk, x: Value, args: Sequence[Any], kwargs: dict[str, Any], spatial: int
) -> tuple[set[int], set[int]]:
    """Return the axes of a map that are pooled position by position, and those that are pooled whole."""
    name = name_of(walk.node.target) if walk.node is not None else ""
    named, first = _arguments(walk, args, kwargs), len(x.dims) - spatial

    def each(key: str, default: Any) -> list[Any]:
        value = named.get(key, default)
        value = default if value is None or value == [] else value
        return [value] * spatial if isinstance(value, int) else [*value] * (spatial // len(value))

    sizes = [d.size for d in x.dims[first:]]
    if "adaptive" in name:
        wanted = each("output_size", sizes)
        return (
            {first + i for i, w in enumerate(wanted) if w == sizes[i]},
            {first + i for i, w in enumerate(wanted) if w == 1},
        )
    if "upsample" in name or "lp" in name or "kernel_size" not in named:
        return set(), set()
    kernel, padding, dilation = each("kernel_size", 1), each("padding", 0), each("dilation", 1)
    stride = each("stride", kernel)
    plain = [p == 0 and d == 1 for p, d in zip(padding, dilation, strict=True)]
    return (
        {first + i for i in range(spatial) if kernel[i] == stride[i] == 1 and plain[i]},
        {first + i for i in range(spatial) if kernel[i] == sizes[i] and plain[i]},
    )


_CONSTANTS = (
    "full", "zeros", "ones", "empty", "full_like", "zeros_like", "ones_like", "empty_like",
    "new_zeros", "new_ones", "new_full", "new_empty", "scalar_tensor",
)  # fmt: skip


@rule(*_CONSTANTS)
def constant(walk: Walk, *_: Any, **__: Any) -> Value:
    """One value everywhere; what is written into later is no longer uniform, see `walk`."""
    from .labels import Dim

    shape = walk.output_shape()
    if walk.node is not None and not replaced(walk.node):
        written = any(_may_write(user) for user in walk.node.users)
    else:
        written = False
    if written:
        return Value(pinned(shape))
    return Value([Dim(size, "uniform") for size in shape])


def replaced(node: Any) -> bool:
    """Whether nobody but one operation in place takes a tensor of one value: its result is all there is."""
    from .rule import name_is_in_place

    users = list(node.users)
    return (
        name_of(node.target) in _CONSTANTS
        and len(users) == 1
        and name_is_in_place(users[0].target)
        and users[0].args[0] is node
    )


def _may_write(user: Any) -> bool:
    from .rule import name_is_in_place

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
    "arange",
    "linspace",
    "regraft.of_example",
    "tril",
    "triu",
    "eye",
    "one_hot",
    "bucketize",
    "nonzero",
    "rand",
    "randn",
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
