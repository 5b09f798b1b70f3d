"""Labels of tensor dimensions, and the ledger of what they have in common.

Every dimension of every tensor in a network is either pinned (its order is fixed), or uniform (all
its entries are equal, so that their order says nothing), or made of nodes: one number for each
position, naming what may move there. An operation says which nodes are the same thing (`tie`), which
belong to a larger one (`adopt`: a dimension to its head, a pixel of a flattened map to its channel),
and which stay (`fix`). Nothing is resolved here; `groups.py` does that at the end.

The nodes of one dimension may depend on the index of another, as the dimensions of a head do on the
head: they are then an array [*sizes of the dimensions in `over`, n].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Kind = Literal["pinned", "uniform", "nodes"]


class Dim:
    """One dimension of a traced tensor; compared by identity.

    Attributes:
        size: Its length.
        kind: `pinned`, `uniform` or `nodes`.
        nodes: int64 [*over sizes, size] for `nodes`.
        over: The dimensions of the same tensor whose index the nodes depend on.
        why: What pins it, where that is known.
    """

    __slots__ = ("kind", "nodes", "over", "size", "why")

    def __init__(
        self,
        size: int,
        kind: Kind = "pinned",
        nodes: np.ndarray | None = None,
        over: Sequence[Dim] = (),
        why: str = "",
    ) -> None:
        self.size, self.why = int(size), why
        self.kind: Kind = kind
        self.over: tuple[Dim, ...] = ()
        self.nodes = np.empty(0, np.int64)
        if size == 1:  # a single position has no order
            self.kind = "pinned"
        elif nodes is not None:
            self.nodes, self.over = _reduced(nodes, tuple(over))

    @property
    def moves(self) -> bool:
        """Whether the dimension is made of nodes."""
        return self.kind == "nodes"


def _reduced(nodes: np.ndarray, over: tuple[Dim, ...]) -> tuple[np.ndarray, tuple[Dim, ...]]:
    """Drop the dimensions that the nodes do not really depend on."""
    for axis in reversed(range(len(over))):
        first = nodes.take([0], axis=axis)
        if (nodes == first).all():
            nodes = first.squeeze(axis)
            over = over[:axis] + over[axis + 1 :]
    return nodes, over


def twin(dim: Dim) -> Dim:
    """Return another dimension of the same nodes."""
    nodes = dim.nodes if dim.moves else None
    return Dim(dim.size, dim.kind, nodes, dim.over, dim.why)


def pinned(sizes: Iterable[int], why: str = "") -> list[Dim]:
    """Return pinned dimensions of the given sizes."""
    return [Dim(size, why=why) for size in sizes]


Change = tuple[tuple[Dim, ...], Callable[[np.ndarray, int], np.ndarray]]
"""What becomes of a dimension that nodes depend on: the new ones, and how the array follows."""


def rebind(dims: Sequence[Dim], changes: Mapping[Dim, Change]) -> list[Dim]:
    """Return the dimensions, with those that depend on a changed one made to depend on the new."""
    changes = dict(changes)
    out: dict[Dim, Dim] = {}
    for dim in sorted(dims, key=_depth):
        over, nodes = list(dim.over), dim.nodes
        for base in dim.over:
            if base in changes:
                at = over.index(base)
                new, follow = changes[base]
                nodes = follow(nodes, at)
                over[at : at + 1] = new
        if over != list(dim.over) or nodes is not dim.nodes:
            out[dim] = Dim(dim.size, dim.kind, nodes, over)
            changes.setdefault(dim, ((out[dim],), lambda array, _axis: array))
    return [out.get(dim, dim) for dim in dims]


def substitute(old: Dim, new: Dim) -> dict[Dim, Change]:
    """Return the change of one dimension into another of the same size."""
    return {old: ((new,), lambda array, _axis: array)}


def _depth(dim: Dim) -> int:
    return 1 + max(map(_depth, dim.over), default=-1)


def spread(dim: Dim, over: Sequence[Dim]) -> np.ndarray:
    """Return the nodes of a dimension as an array over all of `over`, [*sizes, n]."""
    order = [dim.over.index(base) for base in over if base in dim.over]
    nodes = dim.nodes.transpose([*order, dim.nodes.ndim - 1])
    shape = [base.size if base in dim.over else 1 for base in over]
    full = [base.size for base in over]
    return np.broadcast_to(nodes.reshape([*shape, dim.size]), [*full, dim.size])


@dataclass
class Ledger:
    """Everything that the operations of a network say about its nodes."""

    count: int = 0
    ties: list[np.ndarray] = field(default_factory=list)
    """Pairs of nodes that are one thing, int64 [n, 2]."""
    kin: list[np.ndarray] = field(default_factory=list)
    """Rows (node, the larger node it belongs to, as what), int64 [n, 3]."""
    fixed: list[tuple[np.ndarray, str]] = field(default_factory=list)
    """Nodes that stay, and why."""
    marks: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """Nodes and the mark of each: nodes change places only with those of the same marks."""
    taken: list[np.ndarray] = field(default_factory=list)
    """Nodes that some cut takes."""
    left_out: list[np.ndarray] = field(default_factory=list)
    """Nodes that some cut leaves out."""
    reason: str = ""
    """What to say of nodes fixed now: the operation at hand."""
    _marks: int = 0
    _roles: int = 0
    _blocks: dict[tuple[bytes, int], np.ndarray] = field(default_factory=dict)

    def fresh(self, *shape: int) -> np.ndarray:
        """Return new nodes of the given shape."""
        n = int(np.prod(shape, dtype=np.int64))
        nodes = np.arange(self.count, self.count + n, dtype=np.int64).reshape(shape)
        self.count += n
        return nodes

    def axis(self, size: int) -> Dim:
        """Return a dimension of new nodes."""
        return Dim(size, "nodes", self.fresh(size)) if size > 1 else Dim(size)

    def adopt(self, children: np.ndarray, parents: np.ndarray, role: int = 0) -> None:
        """Say that each child belongs to its parent, as what (see `role`); equal shapes."""
        roles = np.full(children.size, role)
        rows = np.stack([children.ravel(), parents.ravel(), roles], axis=1)
        self.kin.append(np.unique(rows, axis=0))

    def role(self) -> int:
        """Return a new role: cell (i, j) belongs to i as its row and to j as its column."""
        self._roles += 1
        return self._roles

    def mark(self, nodes: np.ndarray, colours: np.ndarray) -> None:
        """Tell nodes apart: those of another colour (integers, same shape) are no equals."""
        self.marks.append((nodes.ravel(), colours.ravel() + self._marks))
        self._marks += int(colours.max(initial=0)) + 1

    def fix(self, dim: Dim, why: str = "") -> Dim:
        """Pin a dimension, relative to those it lies over, and return it pinned."""
        if dim.moves:
            self._hold(dim.nodes, dim.over, why or self.reason)
        return Dim(dim.size, why=why or dim.why)

    def _hold(self, nodes: np.ndarray, over: Sequence[Dim], why: str) -> None:
        """Hold nodes [*over sizes, n] in place, or give them numbers that they keep when owners move."""
        if not any(base.moves for base in over):
            self.fixed.append((np.unique(nodes), why))
            return
        numbers = np.zeros(nodes.shape, np.int64)
        scale = 1
        for axis, size in reversed(list(enumerate(nodes.shape))):
            if axis == nodes.ndim - 1 or not over[axis].moves:
                shape = [1] * nodes.ndim
                shape[axis] = size
                numbers = numbers + scale * np.arange(size).reshape(shape)
                scale *= size
        self.mark(nodes, numbers)

    def silent_on(self, nodes: np.ndarray) -> bool:
        """Whether nothing was said about any of these nodes."""
        said = [
            *self.ties,
            *(k[:, :2] for k in self.kin),
            *(n for n, _ in self.fixed),
            *(n for n, _ in self.marks),
        ]
        return not any(np.isin(nodes, some).any() for some in said)

    def unify(self, a: Dim, b: Dim) -> Dim:
        """Say that two dimensions of the same size are permuted alike; return the one to go on with.

        Both must lie over dimensions of the same tensor.
        """
        if a is b or b.kind == "uniform" or b.size == 1:
            return a
        if a.kind == "uniform" or a.size == 1:
            return b
        if not (a.moves and b.moves):
            return self.fix(*((a, b.why) if a.moves else (b, a.why)))
        over = [*a.over, *(base for base in b.over if base not in a.over)]
        left, right = spread(a, over), spread(b, over)
        self._tie(left, right, over)
        if len(a.over) != len(b.over):
            return a if len(a.over) > len(b.over) else b
        return a if len(np.unique(left)) <= len(np.unique(right)) else b

    def release(self, dim: Dim, base: Dim) -> Dim:
        """Return a dimension that no longer depends on `base`, which is going to be summed over.

        Nodes at all indices of `base` are permuted alike from here on.
        """
        over = [other for other in dim.over if other is not base]
        alike = Dim(dim.size, "nodes", self.fresh(*(o.size for o in over), dim.size), over)
        self.unify(dim, alike)
        return alike

    def _tie(self, left: np.ndarray, right: np.ndarray, over: Sequence[Dim]) -> None:
        if np.array_equal(left, right):
            return
        pairs, first = np.unique(
            np.stack([left.ravel(), right.ravel()], axis=1), axis=0, return_index=True
        )
        a, b = len(np.unique(pairs[:, 0])), len(np.unique(pairs[:, 1]))
        if np.isin(pairs[:, 0], pairs[:, 1]).any():
            # Units that are tied to each other, as by h + h.flip(-1), would have to move in an order.
            for nodes in (left, right):
                self._hold(nodes, over, f"{self.reason} ties them to each other")
        elif len(pairs) == a == b:
            self.ties.append(pairs)
        elif len(pairs) == a:
            self._share(pairs, first, left.shape, over)
        elif len(pairs) == b:
            self._share(pairs[:, ::-1], first, left.shape, over)
        else:
            why = f"{self.reason} ties its positions in two ways that do not fit together"
            self.fixed.append((np.unique(pairs), why))

    def _share(
        self, pairs: np.ndarray, first: np.ndarray, shape: tuple[int, ...], over: Sequence[Dim]
    ) -> None:
        """Several nodes on one side are one on the other: they belong to it, each in its place.

        What tells them apart is the node they also belong to along a dimension that moves; along
        any other their place is a number.
        """
        self.adopt(pairs[:, 0], pairs[:, 1])
        index = np.unravel_index(first, shape)
        moving = [index[axis] for axis, base in enumerate(over) if base.moves]
        key = np.stack([pairs[:, 1], *moving], axis=1)
        order = np.lexsort([first, *key.T[::-1]])
        changes = np.any(np.diff(key[order], axis=0) != 0, axis=1)
        starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
        lengths = np.diff([*starts, len(order)])
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(starts, lengths)
        if rank.any():
            self.mark(pairs[:, 0], rank)

    def blocks(self, nodes: np.ndarray, over: Sequence[Dim]) -> np.ndarray:
        """Return one node for each block of nodes [*over sizes, blocks, within] that moves as one."""
        key = (nodes.tobytes(), nodes.shape[-1])
        if key not in self._blocks:
            owners = self.fresh(*nodes.shape[:-1])
            self._blocks[key] = owners
            self.adopt(nodes, np.broadcast_to(owners[..., None], nodes.shape), self.role())
            for axis, base in enumerate(over):
                if base.moves:
                    others = [other for other in over if other is not base]
                    larger = np.moveaxis(spread(base, others), -1, axis)[..., None]
                    self.adopt(owners, np.broadcast_to(larger, owners.shape))
            pairs = np.unique(
                np.stack([nodes.ravel(), np.repeat(owners.ravel(), nodes.shape[-1])], axis=1),
                axis=0,
            )
            if len(pairs) > len(np.unique(pairs[:, 0])):
                self.fixed.append(
                    (owners.ravel(), f"{self.reason} splits what is in several blocks")
                )
        return self._blocks[key]
