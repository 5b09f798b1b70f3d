"""In which order a class of nodes lies on an axis that it occupies several times.

Units change places position by position: what is first of one must be first of the other. The halves of
a gate, an index in another order and the like tie nodes of one axis to each other; from a node that its
class has only once, the ties lead to every other, and the way there names it, alike for all units.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Mapping

import numpy as np

from .walk import Walk

Place = tuple[str, int]
"""A tensor and one of its axes."""
Where = tuple[Place, int, int]
"""A place, the copy, the position."""
_Way = tuple[tuple[int, int], ...]
"""Ties, by number and side, one after another."""


def ordered(
    walk: Walk, of: np.ndarray, places: Mapping[int, list[Where]]
) -> tuple[dict[int, list[Where]], dict[int, object], list[int]]:
    """Return the places of such classes in an order that corresponds between equals.

    Args:
        walk: What the operations say.
        of: Class of each node.
        places: Class -> where it lies.

    Returns:
        The places in order; what tells classes of another order apart; classes in no order.
    """
    several = {c for c, where in places.items() if len({w[:2] for w in where}) < len(where)}
    if not several:
        return {}, {}, []
    colours, ties = _colours(walk, of, several), _ties(walk, of, several)
    sorted_: dict[int, list[Where]] = {}
    kinds: dict[int, object] = {}
    loose: list[int] = []
    for c in sorted(several):
        nodes = {where: _node(walk, where) for where in places[c]}
        root = _root(nodes, colours)
        ways = {} if root is None else _ways(root, ties)
        named = {w: (tuple(colours[n]), ways.get(n, ())) for w, n in nodes.items()}
        keys = [(w[:2], *named[w]) for w in nodes]
        if root is None or len(set(keys)) < len(keys):
            loose.append(c)
            continue
        sorted_[c] = sorted(nodes, key=lambda w: (w[0], w[1], *named[w], w[2]))
        kinds[c] = tuple((w[0], *named[w]) for w in sorted_[c])
    return sorted_, kinds, loose


def _root(nodes: Mapping[Where, int], colours: Mapping[int, list[int]]) -> int | None:
    """Return a node that nothing else in the class can be taken for."""
    alike: dict[object, list[int]] = defaultdict(list)
    for where, node in nodes.items():
        alike[(where[0], tuple(colours[node]))].append(node)
    single = sorted((str(kind), each[0]) for kind, each in alike.items() if len(set(each)) == 1)
    return single[0][1] if single else None


def _ways(root: int, ties: Mapping[int, list[tuple[tuple[int, int], int]]]) -> dict[int, _Way]:
    ways: dict[int, _Way] = {root: ()}
    todo = deque([root])
    while todo:
        node = todo.popleft()
        for step, other in ties.get(node, ()):
            if other not in ways:
                ways[other] = (*ways[node], step)
                todo.append(other)
    return ways


def _node(walk: Walk, where: Where) -> int:
    place, copy, position = where
    dim = walk.axes[place]
    return int(dim.nodes.reshape(-1, dim.size)[copy, position])


def _colours(walk: Walk, of: np.ndarray, classes: Collection[int]) -> dict[int, list[int]]:
    """Return the marks of each node, and those of the larger nodes that it belongs to."""
    inside = np.isin(of, np.array(sorted(classes)))
    owners: dict[int, set[int]] = defaultdict(set)
    rows = np.concatenate([np.zeros((0, 3), np.int64), *walk.ledger.kin])
    todo = inside
    while True:
        here = rows[todo[rows[:, 0]]]
        for child, owner in here[:, :2].tolist():
            owners[child].add(owner)
        further = todo.copy()
        further[here[:, 1]] = True
        if (further == todo).all():
            break
        todo = further
    marked: dict[int, set[int]] = defaultdict(set)
    for nodes, marks in walk.ledger.marks:
        here = todo[nodes]
        for node, colour in zip(nodes[here].tolist(), marks[here].tolist(), strict=True):
            marked[node].add(colour)

    def of_node(node: int, trail: frozenset[int]) -> set[int]:
        above = (of_node(o, trail | {node}) for o in owners[node] if o not in trail)
        return marked[node].union(*above)

    every = np.flatnonzero(inside).tolist()
    return defaultdict(list, {node: sorted(of_node(node, frozenset())) for node in every})


def _ties(
    walk: Walk, of: np.ndarray, classes: Collection[int]
) -> dict[int, list[tuple[tuple[int, int], int]]]:
    chosen = np.array(sorted(classes))
    ties: dict[int, list[tuple[tuple[int, int], int]]] = defaultdict(list)
    for number, pairs in enumerate(walk.ledger.ties):
        for a, b in pairs[np.isin(of[pairs[:, 0]], chosen)].tolist():
            ties[a].append(((number, 0), b))
            ties[b].append(((number, 1), a))
    return ties


__all__ = ["Place", "Where", "ordered"]
