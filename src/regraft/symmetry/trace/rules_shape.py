"""Views, cuts and joins: the nodes of a dimension are carried along, position by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .labels import Change, Dim, pinned, rebind, spread, substitute
from .reshape import merge, reshape
from .rule import Value, Walk, rule


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as")
def view(walk: Walk, x: Value, *_: Any, **__: Any) -> Value:
    """The same elements in another shape."""
    return Value(reshape(walk.ledger, x.dims, walk.output_shape()))


@rule("permute", "movedim", "moveaxis")
def permute(walk: Walk, x: Value, *args: Any, **kwargs: Any) -> Value:
    """Dimensions in another order."""
    name = str(walk.node.target) if walk.node is not None else ""
    order = list(args[0] if args else kwargs["dims"])
    n = len(x.dims)
    if "permute" not in name:
        source = [args[0]] if isinstance(args[0], int) else list(args[0])
        target = [args[1]] if isinstance(args[1], int) else list(args[1])
        order = _moved(n, source, target)
    return Value([x.dims[i % n] for i in order])


def _moved(n: int, source: Sequence[int], target: Sequence[int]) -> list[int]:
    left = [i for i in range(n) if i not in {s % n for s in source}]
    for to, which in sorted(zip((t % n for t in target), (s % n for s in source), strict=True)):
        left.insert(to, which)
    return left


@rule("transpose", "swapaxes", "swapdims")
def transpose(walk: Walk, x: Value, a: int, b: int) -> Value:
    """Two dimensions exchanged."""
    dims = list(x.dims)
    dims[a], dims[b] = dims[b], dims[a]
    return Value(dims)


@rule("t", "numpy_T", "mT", "adjoint")
def t(walk: Walk, x: Value) -> Value:
    """The last two dimensions exchanged."""
    return transpose(walk, x, -1, -2) if len(x.dims) > 1 else x


@rule("unsqueeze")
def unsqueeze(walk: Walk, x: Value, dim: int) -> Value:
    """A new dimension of size 1."""
    at = dim % (len(x.dims) + 1)
    return Value([*x.dims[:at], Dim(1), *x.dims[at:]])


@rule("squeeze")
def squeeze(walk: Walk, x: Value, *_: Any) -> Value:
    """Dimensions of size 1 removed."""
    shape = list(walk.output_shape())
    left, out = [d for d in x.dims if d.size != 1], []
    for size in shape:
        out.append(Dim(1) if size == 1 else left.pop(0))
    return Value(out)


@rule("expand", "expand_as", "broadcast_to")
def expand(walk: Walk, x: Value, *_: Any, **__: Any) -> Value:
    """New dimensions along which everything is the same."""
    shape = walk.output_shape()
    dims = [*pinned([1] * (len(shape) - len(x.dims))), *x.dims]
    return Value(
        [d if d.size == s else Dim(s, "uniform") for d, s in zip(dims, shape, strict=True)]
    )


@rule("repeat", "tile", "repeat_interleave")
def repeat(walk: Walk, x: Value, times: Any, dim: int | None = None, **_: Any) -> Value:
    """Copies side by side: each a uniform dimension merged with what is copied."""
    name = str(walk.node.target) if walk.node is not None else ""
    if "interleave" in name:
        if not isinstance(times, int) or dim is None:
            raise ValueError("repeats that differ")
        at = dim % len(x.dims)
        dims = [*x.dims[: at + 1], Dim(times, "uniform"), *x.dims[at + 1 :]]
        return Value(merge(walk.ledger, dims, at))
    dims = [*pinned([1] * (len(times) - len(x.dims))), *x.dims]
    for at in reversed(range(len(dims))):
        count = times[at - len(dims)] if at - len(dims) >= -len(times) else 1
        if count > 1:
            dims = merge(walk.ledger, [*dims[:at], Dim(count, "uniform"), *dims[at:]], at)
    return Value(dims)


def cut(walk: Walk, x: Value, axis: int, positions: Sequence[int]) -> Value:
    """Return the positions of one dimension, which from now on are told from the others."""
    dim = x.dims[axis]
    chosen = np.asarray(positions, np.int64)
    if len(chosen) == dim.size and (chosen == np.arange(dim.size)).all():
        return x
    if not dim.moves:
        new = Dim(len(chosen), dim.kind, why=dim.why)
    else:
        _tell_apart(walk, dim.nodes, chosen)
        walk.ledger.taken.append(np.unique(dim.nodes[..., chosen]))
        walk.ledger.left_out.append(np.unique(np.delete(dim.nodes, chosen, axis=-1)))
        new = Dim(len(chosen), "nodes", dim.nodes[..., chosen], dim.over)
    changes: dict[Dim, Change] = {dim: ((new,), lambda array, at: array.take(chosen, axis=at))}
    rest = rebind([d for i, d in enumerate(x.dims) if i != axis], changes)
    return Value([*rest[:axis], new, *rest[axis:]])


def _tell_apart(walk: Walk, nodes: np.ndarray, chosen: np.ndarray) -> None:
    """Mark the nodes that a cut takes by which of their own occurrences it takes."""
    flat = nodes.reshape(-1, nodes.shape[-1])
    order = np.argsort(flat, axis=1, kind="stable")
    ordered = np.take_along_axis(flat, order, axis=1)
    new = np.ones_like(ordered, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = np.maximum.accumulate(np.where(new, np.arange(flat.shape[1]), 0), axis=1)
    rank = np.empty_like(flat)
    np.put_along_axis(rank, order, np.arange(flat.shape[1]) - start, axis=1)
    inside = flat[:, chosen]
    if not rank.any():
        walk.ledger.mark(inside, np.zeros_like(inside))
        return
    colours: dict[tuple[int, ...], int] = {}
    taken: dict[int, list[int]] = {}
    for node, which in zip(inside.ravel(), rank[:, chosen].ravel(), strict=True):
        taken.setdefault(int(node), []).append(int(which))
    ranks_of = {node: tuple(sorted(ranks)) for node, ranks in taken.items()}
    for ranks in ranks_of.values():
        colours.setdefault(ranks, len(colours))
    each = np.array(list(ranks_of), np.int64)
    walk.ledger.mark(each, np.array([colours[ranks_of[int(n)]] for n in each], np.int64))


@rule("slice")
def slice_(
    walk: Walk,
    x: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    """A range of one dimension."""
    axis = dim % len(x.dims)
    chosen = range(x.dims[axis].size)[slice(start, end, step)]
    return cut(walk, x, axis, chosen)


@rule("narrow")
def narrow(walk: Walk, x: Value, dim: int, start: int, length: int) -> Value:
    """A range of one dimension."""
    return cut(walk, x, dim % len(x.dims), range(start, start + length))


@rule("select")
def select(walk: Walk, x: Value, dim: int, index: int) -> Value:
    """One position of one dimension, which therefore stays."""
    axis = dim % len(x.dims)
    size = x.dims[axis].size
    dims = cut(walk, x, axis, [index % size]).dims
    if size == 1:
        return Value([d for i, d in enumerate(dims) if i != axis])
    changes: dict[Dim, Change] = {dims[axis]: ((), lambda array, at: array.squeeze(at))}
    return Value(rebind([d for i, d in enumerate(dims) if i != axis], changes))


@rule("unbind")
def unbind(walk: Walk, x: Value, dim: int = 0) -> list[Value]:
    """Every position of one dimension by itself."""
    return [select(walk, x, dim, i) for i in range(x.dims[dim].size)]


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split")
def pieces(walk: Walk, x: Value, _sizes: Any, dim: int = 0, **__: Any) -> list[Value]:
    """Consecutive ranges of one dimension."""
    axis, start, cuts = dim % len(x.dims), 0, []
    count = len(walk.node.meta["val"]) if walk.node is not None else 0
    for i in range(count):
        size = walk.output_shape(i)[axis]
        cuts.append(cut(walk, x, axis, range(start, start + size)))
        start += size
    return cuts


@rule("cat", "concat", "concatenate")
def cat(walk: Walk, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Tensors one after another along a dimension, the others permuted alike."""
    tensors = [t for t in tensors if len(t.dims) > 1 or t.dims[0].size > 0]
    axis = dim % len(tensors[0].dims)
    first = list(tensors[0].dims)
    segments = [first[axis]]
    for other in tensors[1:]:
        changes: dict[Dim, Change] = {}
        for i, dim_ in enumerate(other.dims):
            if i == axis:
                continue
            here = rebind([dim_], changes)[0]
            kept = walk.ledger.unify(first[i], here)
            if kept is not first[i]:
                moved = rebind([*first, *segments], substitute(first[i], kept))
                first, segments = moved[: len(first)], moved[len(first) :]
                first[i] = kept
            changes |= substitute(dim_, first[i])
        segments.append(rebind([other.dims[axis]], changes)[0])
    joined = end_to_end(walk, segments)
    # What depends on the place along the dimension would have to be joined too: let it not depend.
    out = []
    for i, d in enumerate(first):
        if i == axis:
            out.append(joined)
        else:
            out.append(walk.ledger.release(d, first[axis]) if first[axis] in d.over else d)
    return Value(out)


def end_to_end(walk: Walk, segments: Sequence[Dim]) -> Dim:
    """Return several dimensions, one after another, as one."""
    total = sum(s.size for s in segments)
    if not any(s.moves for s in segments):
        return Dim(total, why=next((s.why for s in segments if s.why), ""))
    over = list(dict.fromkeys(base for s in segments for base in s.over))
    sizes = [base.size for base in over]
    arrays = []
    for segment in segments:
        if segment.moves:
            arrays.append(spread(segment, over))
            continue
        # Equal entries may change places without a trace; others stay where they are.
        nodes = walk.ledger.fresh(segment.size)
        walk.ledger.mark(nodes, np.zeros_like(nodes))  # no other border has the same value
        if segment.kind != "uniform":
            walk.ledger.fixed.append((nodes, f"{walk.ledger.reason} puts it beside what is pinned"))
        arrays.append(np.broadcast_to(nodes, [*sizes, segment.size]))
    return Dim(total, "nodes", np.concatenate(arrays, axis=-1), over)


@rule("hstack")
def hstack(walk: Walk, tensors: Sequence[Value]) -> Value:
    """Tensors side by side: along the second dimension, or the only one."""
    return cat(walk, tensors, min(1, len(tensors[0].dims) - 1))


@rule("vstack")
def vstack(walk: Walk, tensors: Sequence[Value]) -> Value:
    """Tensors one above the other, vectors as rows."""
    rows = [unsqueeze(walk, t_, 0) if len(t_.dims) == 1 else t_ for t_ in tensors]
    return cat(walk, rows, 0)


@rule("stack")
def stack(walk: Walk, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Tensors side by side along a new dimension."""
    at = dim % (len(tensors[0].dims) + 1)
    return cat(walk, [unsqueeze(walk, t_, at) for t_ in tensors], at)


@rule("pad", "constant_pad_nd")
def pad(walk: Walk, x: Value, widths: Sequence[int], mode: Any = "constant", *_: Any) -> Value:
    """A border: of one value, which may go anywhere, or of the edge, which may not."""
    constant = not isinstance(mode, str) or mode == "constant"
    result = x
    for i in range(len(widths) // 2):
        axis = len(x.dims) - 1 - i
        before, after = widths[2 * i], widths[2 * i + 1]
        if before == after == 0:
            continue
        size = result.dims[axis].size
        kept = range(max(-before, 0), size - max(-after, 0))
        if not constant:
            walk.ledger.fix(result.dims[axis])
        result = cut(walk, result, axis, kept)
        if constant and result.dims[axis].moves:
            result = _bordered(walk, result, axis, max(before, 0), max(after, 0))
            continue
        around = [Dim(n) for n in (max(before, 0),) if n > 0]
        behind = [Dim(n) for n in (max(after, 0),) if n > 0]
        parts = [_as_value(result, axis, d) for d in around]
        parts += [result, *(_as_value(result, axis, d) for d in behind)]
        result = cat(walk, parts, axis) if len(parts) > 1 else result
    return result


def _bordered(walk: Walk, x: Value, axis: int, before: int, after: int) -> Value:
    """Return a tensor with a border of one value along a dimension that moves.

    What lies over that dimension goes on to: in the border nothing tells its positions apart.
    """
    dim = x.dims[axis]
    segments = [Dim(before, "uniform")] if before else []
    segments += [dim, *([Dim(after, "uniform")] if after else [])]
    joined = end_to_end(walk, segments)
    edges = [joined.nodes[..., :before], joined.nodes[..., before + dim.size :]]

    def extend(array: np.ndarray, at: int) -> np.ndarray:
        parts = [array]
        for edge, count, first in zip(edges, (before, after), (True, False), strict=True):
            if not count:
                continue
            new = walk.ledger.fresh(*array.shape[:at], count, *array.shape[at + 1 :])
            owners = edge.reshape(-1, count)[0].reshape(count, *[1] * (array.ndim - at - 1))
            walk.ledger.adopt(new, np.broadcast_to(owners, new.shape))
            parts = [new, *parts] if first else [*parts, new]
        return np.concatenate(parts, axis=at)

    rest = rebind([d for i, d in enumerate(x.dims) if i != axis], {dim: ((joined,), extend)})
    return Value([*rest[:axis], joined, *rest[axis:]])


def _as_value(like: Value, axis: int, dim: Dim) -> Value:
    """Return a tensor of one value in the shape of another but for one dimension."""
    return Value([dim if i == axis else Dim(d.size, "uniform") for i, d in enumerate(like.dims)])
