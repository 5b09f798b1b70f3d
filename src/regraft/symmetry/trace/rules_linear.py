"""Linear layers, convolutions, products and attention: what is summed over must be tied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .contract import contract, mixed
from .labels import Dim, pinned, rebind, substitute
from .reshape import split
from .rule import Value, Walk, rule
from .rules_elementwise import reads


@rule("linear")
def linear(walk: Walk, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """y[..., o] = sum_i x[..., i] W[o, i] + b[o]."""
    lead = [str(i) for i in range(len(x.dims) - 1)]
    out = "o" if len(weight.dims) == 2 else None
    named = [(x.dims, [*lead, "in"]), (weight.dims, [*([out] if out else []), "in"])]
    dims = contract(walk.ledger, named, [*lead, *([out] if out else [])])
    if bias is not None and bias.dims:
        dims[-1] = walk.ledger.unify(dims[-1], bias.dims[0])
    return Value(dims)


@rule("addmm", "addbmm", "baddbmm")
def addmm(walk: Walk, bias: Value, x: Value, y: Value, **_: Any) -> Value:
    """Product plus bias, y = b + x y: a linear layer with its weight the other way round."""
    from .contract import broadcast

    return Value(broadcast(walk.ledger, matmul(walk, x, y).dims, bias.dims))


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot", "_sparse_mm")
def matmul(walk: Walk, x: Value, y: Value) -> Value:
    """Matrix product, batched and broadcast as torch.matmul does it."""
    most = max(len(x.dims), len(y.dims)) - 2
    lead = [str(i) for i in range(max(most, 0))]
    left = ["k"] if len(x.dims) == 1 else [*lead[len(lead) - len(x.dims) + 2 :], "row", "k"]
    right = ["k"] if len(y.dims) == 1 else [*lead[len(lead) - len(y.dims) + 2 :], "k", "column"]
    rows = ["row"] if len(x.dims) > 1 else []
    columns = ["column"] if len(y.dims) > 1 else []
    named = [(x.dims, left), (y.dims, right)]
    return Value(contract(walk.ledger, named, [*lead, *rows, *columns]))


@rule("_grouped_mm", "grouped_mm", "transformers.grouped_mm_fallback")
def grouped(walk: Walk, rows: Value, weights: Value, *others: Any, **named: Any) -> Value:
    """Rows [s, i], sorted by group, times the matrix [g, i, o] of each: alike in all groups."""
    if len(rows.dims) != 2 or len(weights.dims) != 3:
        raise ValueError("groups along another dimension")
    walk.pin((others, named))
    walk.ledger.fix(weights.dims[0], "which expert a row goes to is a position")
    operands = [(rows.dims, ["s", "i"]), (weights.dims, ["g", "i", "o"])]
    return Value(contract(walk.ledger, operands, ["s", "o"]))


@rule("cdist")
def cdist(walk: Walk, x: Value, y: Value, *_: Any, **__: Any) -> Value:
    """Distances of all rows of x [..., row, k] from those of y [..., column, k]."""
    return matmul(walk, x, Value([*y.dims[:-2], y.dims[-1], y.dims[-2]]))


@rule("einsum")
def einsum(walk: Walk, equation: str, tensors: Sequence[Value], **_: Any) -> Value:
    """The sum of products that the equation says."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    if not arrow:
        joined = "".join(letters).replace(".", "")
        out = "..." * ("..." in inputs)
        out += "".join(sorted(c for c in set(joined) if joined.count(c) == 1))
    most = max(
        len(t.dims) - len(own.replace("...", "")) for t, own in zip(tensors, letters, strict=True)
    )

    def spelled(own: str, count: int) -> list[str]:
        before, dots, after = own.partition("...")
        rest = [str(i) for i in range(most - count, most)] if dots else []
        return [*before, *rest, *after]

    named = [
        (t.dims, spelled(own, len(t.dims) - len(own.replace("...", ""))))
        for t, own in zip(tensors, letters, strict=True)
    ]
    return Value(contract(walk.ledger, named, spelled(out, most)))


@rule("scaled_dot_product_attention")
def attention(
    walk: Walk,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    enable_gqa: bool = False,
    **_: Any,
) -> Value:
    """Softmax(Q K^T) V over [..., heads, time, dimensions]: Q/K and V/O dimensions within heads."""
    k, v = key, value
    if is_causal:
        for time in (query.dims[-2], key.dims[-2], value.dims[-2]):
            walk.ledger.fix(time, f"its order in time matters to {walk.ledger.reason}")
    if enable_gqa and key.dims[-3].size != query.dims[-3].size:
        repeat = query.dims[-3].size // key.dims[-3].size
        k, v = (_repeated_heads(walk, t, repeat) for t in (key, value))
    lead = [str(i) for i in range(len(query.dims) - 2)]
    weights = contract(
        walk.ledger,
        [(query.dims, [*lead, "t", "d"]), (k.dims, [*lead, "s", "d"])],
        [*lead, "t", "s"],
    )
    if attn_mask is not None:
        from .contract import broadcast

        weights = broadcast(walk.ledger, weights, attn_mask.dims)
    weights = mixed(walk.ledger, weights, [-1])
    return Value(
        contract(
            walk.ledger,
            [(weights, [*lead, "t", "s"]), (v.dims, [*lead, "s", "d"])],
            [*lead, "t", "d"],
        )
    )


def _repeated_heads(walk: Walk, x: Value, repeat: int) -> Value:
    """Let each head stand for several queries' heads, as grouped-query attention does."""
    from .reshape import merge

    at = len(x.dims) - 3
    dims = [*x.dims[: at + 1], Dim(repeat, "uniform"), *x.dims[at + 1 :]]
    return Value(merge(walk.ledger, dims, at))


@rule("conv1d", "conv2d", "conv3d")
def conv(
    walk: Walk,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """Convolution [b, i, ...] by [o, i / groups, ...]; kernel and map positions stay."""
    out = _channels(walk, x, weight, groups, transposed=False)
    return _convolved(walk, x, weight, bias, out)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(
    walk: Walk,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """Transposed convolution [b, i, ...] by [i, o / groups, ...]."""
    out = _channels(walk, x, weight, groups, transposed=True)
    return _convolved(walk, x, weight, bias, out)


@rule("convolution")
def convolution(
    walk: Walk,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    """Either kind, as a decomposition leaves it."""
    return _convolved(
        walk, x, weight, bias, _channels(walk, x, weight, groups, transposed=transposed)
    )


def _channels(walk: Walk, x: Value, weight: Value, groups: int, *, transposed: bool) -> Dim:
    """Tie the channels that come in, and return those that go out."""
    at = len(x.dims) - len(weight.dims) + 1
    channels, ledger = x.dims[at], walk.ledger
    if weight.parameter is not None:
        walk.kernels |= {(weight.parameter, axis) for axis in range(2, len(weight.dims))}
    if not _pointwise(walk, x, weight):
        for other in (*x.dims[at + 1 :], *weight.dims[2:]):
            ledger.fix(other, "the positions of a kernel or map")
    whole, part = (weight.dims[0], weight.dims[1])
    if groups == 1:
        came, left = (whole, part) if transposed else (part, whole)
        ledger.unify(channels, came)
        return left
    if part.size == 1 and whole.size == channels.size == groups:  # depthwise, one for each
        return ledger.unify(whole, channels)
    outer, inner = split(ledger, [whole], 0, groups)
    blocks, within = split(ledger, [channels], 0, groups) if channels.size > 1 else [Dim(1)] * 2
    kept = ledger.unify(outer, blocks)
    over = walk.regroup(weight, 1, kept, 0)
    came, left = (inner, over) if transposed else (over, inner)
    within = rebind([within], substitute(blocks, kept))[0]
    came = rebind([came], substitute(outer, kept))[0]
    ledger.unify(came, within)
    if not transposed:
        return whole
    from .reshape import merge

    return merge(ledger, [kept, left], 0)[0]


def _convolved(walk: Walk, x: Value, weight: Value, bias: Value | None, out: Dim) -> Value:
    shape = walk.output_shape()
    at = len(shape) - len(weight.dims) + 1
    if bias is not None:
        out = walk.ledger.unify(out, bias.dims[0])
    pointwise = _pointwise(walk, x, weight)
    depthwise = weight.dims[1].size == 1 and weight.dims[0].size == x.dims[at].size
    axes = [*([] if depthwise else [at]), *([] if pointwise else range(at + 1, len(x.dims)))]
    x = Value(mixed(walk.ledger, x.dims, axes))
    if pointwise:
        return Value([*x.dims[:at], out, *x.dims[at + 1 :]])
    positions = pinned(shape[at + 1 :], "it runs along the positions of a map")
    return Value([*x.dims[:at], out, *positions])


def _pointwise(walk: Walk, x: Value, weight: Value) -> bool:
    """Whether each position of a map is treated by itself, as by a 1x1 kernel without stride."""
    at = len(x.dims) - len(weight.dims) + 2
    same = walk.output_shape()[at:] == x.shape[at:]
    return same and all(dim.size == 1 for dim in weight.dims[2:])


@rule("bilinear")
def bilinear(walk: Walk, x: Value, y: Value, weight: Value, bias: Value | None = None) -> Value:
    """y[o] = sum_ij x[i] W[o, i, j] y[j] + b[o]."""
    lead = [str(i) for i in range(len(x.dims) - 1)]
    named = [(x.dims, [*lead, "i"]), (y.dims, [*lead, "j"]), (weight.dims, ["o", "i", "j"])]
    dims = contract(walk.ledger, named, [*lead, "o"])
    if bias is not None:
        dims[-1] = walk.ledger.unify(dims[-1], bias.dims[0])
    return Value(dims)


@rule("embedding")
def embedding(walk: Walk, weight: Value, index: Value, *_: Any, **__: Any) -> Value:
    """Rows by index: the vocabulary stays, the features are an axis like any other."""
    walk.ledger.fix(weight.dims[0], "it is looked up by index")
    return Value([*index.dims, weight.dims[1]])


@rule("embedding_bag")
def embedding_bag(walk: Walk, weight: Value, *others: Any, **named: Any) -> list[Any]:
    """Rows by index, summed or averaged over bags; only the first of the results is followed."""
    if walk.node is not None and any(reads(user, i) for user in walk.node.users for i in (1, 2, 3)):
        raise ValueError("what it found on the way is read")
    walk.ledger.fix(weight.dims[0], "it is looked up by index")
    walk.pin((others, named))
    shape = walk.output_shape(0)
    rest = [Value(pinned(walk.output_shape(i))) for i in (1, 2, 3)]
    return [Value([Dim(shape[0]), weight.dims[1]]), *rest]
