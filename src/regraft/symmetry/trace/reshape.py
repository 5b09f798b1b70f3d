"""Splitting and merging dimensions, as view, reshape, flatten and unflatten do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .labels import Change, Dim, Ledger, rebind, spread


def reshape(ledger: Ledger, dims: Sequence[Dim], shape: Sequence[int]) -> list[Dim]:
    """Return the dimensions of a tensor viewed in another shape of as many elements.

    The shapes are walked from the left; runs of equal products are merged and split again.
    """
    if 0 in shape:
        return [Dim(size) for size in shape]
    dims, out = [d for d in dims if d.size != 1], []
    wanted = [size for size in shape if size != 1]
    while wanted:
        size = wanted.pop(0)
        while dims[0].size % size and len(dims) > 1:
            # Only as much of the next dimension is merged as is asked for: heads, not all of them.
            needed = size // dims[0].size
            if (
                needed * dims[0].size == size
                and needed < dims[1].size
                and not dims[1].size % needed
            ):
                both = split(ledger, [*out, *dims], len(out) + 1, needed)
                out, dims = both[: len(out)], both[len(out) :]
            both = merge(ledger, [*out, *dims], len(out))
            out, dims = both[: len(out)], both[len(out) :]
        if dims[0].size > size and dims[0].size % size == 0:
            both = split(ledger, [*out, *dims], len(out), size)
            out, dims = both[: len(out) + 1], both[len(out) + 1 :]
        elif dims[0].size == size:
            out.append(dims.pop(0))
        else:
            # No common run of products: nothing of it can move.
            out += [Dim(size), *(Dim(other) for other in wanted)]
            for dim in dims:
                ledger.fix(dim)
            wanted, dims = [], []
    it = iter(out)
    return [Dim(1) if size == 1 else next(it) for size in shape]


def split(ledger: Ledger, dims: Sequence[Dim], axis: int, outer: int) -> list[Dim]:
    """Return the dimensions with one of size N = outer x inner cut into these two."""
    dim = dims[axis]
    inner = dim.size // outer
    a, b = _parts(ledger, dim, outer, inner)

    def cut(array: np.ndarray, at: int) -> np.ndarray:
        return array.reshape(*array.shape[:at], outer, inner, *array.shape[at + 1 :])

    rest = rebind([d for i, d in enumerate(dims) if i != axis], {dim: ((a, b), cut)})
    return [*rest[:axis], a, b, *rest[axis:]]


def _parts(ledger: Ledger, dim: Dim, outer: int, inner: int) -> tuple[Dim, Dim]:
    if not dim.moves:
        return Dim(outer, dim.kind, why=dim.why), Dim(inner, dim.kind, why=dim.why)
    nodes = dim.nodes.reshape(*dim.nodes.shape[:-1], outer, inner)
    if (nodes == nodes[..., :1]).all():  # each node repeated: a flattened map
        return Dim(outer, "nodes", nodes[..., 0], dim.over), Dim(inner)
    if (nodes == nodes[..., :1, :]).all():
        return Dim(outer), Dim(inner, "nodes", nodes[..., 0, :], dim.over)
    a = Dim(outer, "nodes", ledger.blocks(nodes, dim.over), dim.over)
    return a, Dim(inner, "nodes", nodes, [*dim.over, a])


def merge(ledger: Ledger, dims: Sequence[Dim], axis: int) -> list[Dim]:
    """Return the dimensions with those at `axis` and after it made one, the first the slower."""
    a, b = dims[axis], dims[axis + 1]
    others = [d for i, d in enumerate(dims) if i not in (axis, axis + 1)]
    one = _joined(ledger, a, b)

    def follow(dim: Dim) -> Dim:
        if a not in dim.over and b not in dim.over:
            return dim
        over = [base for base in dim.over if base not in (a, b)]
        nodes = spread(dim, [*over, a, b])
        nodes = nodes.reshape(*nodes.shape[: len(over)], a.size * b.size, dim.size)
        return Dim(dim.size, "nodes", nodes, [*over, one])

    followed = [follow(d) for d in others]
    changes: dict[Dim, Change] = {
        old: ((new,), lambda array, _axis: array)
        for old, new in zip(others, followed, strict=True)
        if old is not new
    }
    rest = rebind(followed, changes)
    return [*rest[:axis], one, *rest[axis:]]


def _joined(ledger: Ledger, a: Dim, b: Dim) -> Dim:
    n = a.size * b.size
    if 1 in (a.size, b.size):
        return b if a.size == 1 else a
    if not a.moves and not b.moves:
        same = a.kind == b.kind == "uniform"
        return Dim(n, "uniform" if same else "pinned", why=a.why or b.why)
    over = [base for base in [*a.over, *b.over] if base not in (a, b)]
    over = list(dict.fromkeys(over))
    if a.moves and b in a.over:  # the slower depends on the faster: the array is all there is
        nodes = spread(a, [*over, b])
        return Dim(n, "nodes", np.moveaxis(nodes, -1, -2).reshape(*nodes.shape[:-2], n), over)
    if b.moves and (a.kind == "pinned" or (a in b.over and _distinct(b, a, over))):
        nodes = spread(b, [*over, a])
        if a.moves:
            owners = np.broadcast_to(spread(a, over)[..., None], nodes.shape)
            ledger.adopt(nodes, owners)
        return Dim(n, "nodes", nodes.reshape(*nodes.shape[:-2], n), over)
    if a.moves and b.kind == "pinned":
        nodes = spread(a, over)
        return Dim(n, "nodes", np.repeat(nodes, b.size, axis=-1), over)
    # Each position is both: it belongs to its node along either.
    sizes = [base.size for base in over]
    cells = ledger.fresh(*sizes, a.size, b.size)
    if a.moves:
        rows = np.broadcast_to(spread(a, over)[..., None], cells.shape)
        ledger.adopt(cells, rows, ledger.role())
    if b.moves:
        columns = np.broadcast_to(spread(b, [*over, a]), cells.shape)
        ledger.adopt(cells, columns, ledger.role())
    return Dim(n, "nodes", cells.reshape(*sizes, n), over)


def _distinct(b: Dim, a: Dim, over: Sequence[Dim]) -> bool:
    """Whether no node of `b` is met at two indices of `a`."""
    nodes = spread(b, [*over, a])
    at = np.broadcast_to(np.arange(a.size)[:, None], nodes.shape)
    pairs = np.unique(np.stack([nodes.ravel(), at.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1]
