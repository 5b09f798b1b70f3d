"""The nodes of a ledger brought together: which are one, what each belongs to, what tells it apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .order import Place, Where, ordered
from .walk import Walk


@dataclass
class Classes:
    """Classes of nodes that are one thing.

    Attributes:
        of: Class of each node, int64 [nodes].
        parents: Class -> the classes it belongs to.
        children: Class -> the classes that belong to it, in the order of their first nodes.
        marks: Class -> what tells it from others.
        roles: (class, class it belongs to) -> as what, where that is more than one of its parts.
        fixed: Class that stays -> why.
        places: Class -> where it lies: ((tensor, axis), copy, position); the copy is 0
            except on an axis that lies over blocks of another; in an order that corresponds
            between equals.
    """

    of: np.ndarray
    parents: dict[int, frozenset[int]]
    children: dict[int, list[int]]
    marks: dict[int, frozenset[int]]
    roles: dict[tuple[int, int], frozenset[int]]
    fixed: dict[int, str]
    places: dict[int, list[Where]]


def classes(walk: Walk) -> Classes:
    """Resolve what a walk wrote down."""
    ledger = walk.ledger
    none = np.zeros((0, 2), np.int64)
    edges = np.concatenate([none, *ledger.ties])
    rows = np.concatenate([np.zeros((0, 3), np.int64), *ledger.kin])
    kin = np.unique(rows[:, :2], axis=0)
    while True:
        of, parents = _components(ledger.count, edges, kin)
        first = np.zeros(of.max(initial=-1) + 1, np.int64)
        first[of[::-1]] = np.arange(len(of))[::-1]
        places = _places(walk, of)
        roles = _roles(rows, of)
        merged = _one_block(parents, places, roles)
        if not len(merged):
            break
        edges = np.concatenate([edges, first[merged]])
    _nest(parents)
    _reduce(parents)
    fixed: dict[int, str] = {}
    for nodes, why in ledger.fixed:
        for c in np.unique(of[nodes]):
            fixed.setdefault(int(c), why)
    in_order, kinds, loose = ordered(walk, of, places)
    places |= in_order
    for c in loose:
        fixed.setdefault(c, "nothing tells in which order it lies on one axis")
    for c in _unreached(walk, of, places):
        fixed.setdefault(c, "nothing reads it at these example inputs")
    _rise(fixed, parents)
    children: dict[int, list[int]] = defaultdict(list)
    for child, owners in parents.items():
        for owner in owners:
            children[owner].append(child)
    for owner, members in children.items():
        children[owner] = sorted(members, key=lambda c: first[c])
    return Classes(
        of,
        {c: frozenset(p) for c, p in parents.items()},
        dict(children),
        _marks(walk, of, kinds),
        roles,
        fixed,
        places,
    )


def _components(
    count: int, edges: np.ndarray, kin: np.ndarray
) -> tuple[np.ndarray, dict[int, set[int]]]:
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), (count, count))
    of = connected_components(graph, directed=False)[1].astype(np.int64)
    parents: dict[int, set[int]] = defaultdict(set)
    for child, owner in np.unique(of[kin], axis=0).tolist() if len(kin) else ():
        if child != owner:
            parents[child].add(owner)
    return of, parents


def _one_block(
    parents: dict[int, set[int]],
    places: dict[int, list[Where]],
    roles: Mapping[tuple[int, int], frozenset[int]],
) -> np.ndarray:
    """Return pairs of classes that are one block under two names.

    They are if, of some kind of class (by the axes it lies on, or what belongs to it), they own exactly
    the same.
    """
    none: frozenset[int] = frozenset()
    kinds: dict[int, int] = {}
    numbers: dict[frozenset[Place], int] = {}
    owned: dict[tuple[int, int], set[int]] = defaultdict(set)
    lies: dict[int, set[Place]] = defaultdict(set)
    todo = [(c, {place for place, _, _ in where}) for c, where in places.items()]
    while todo:
        c, here = todo.pop()
        if not here <= lies[c]:
            lies[c] |= here
            todo += [(owner, here) for owner in parents.get(c, ())]
    for child, owners in parents.items():
        kinds[child] = numbers.setdefault(frozenset(lies[child]), len(numbers))
        for owner in owners:
            owned[owner, kinds[child]].add(child)
    pairs = set()
    blocks: set[tuple[int, frozenset[int]]] = set()
    for child, owners in parents.items():
        if len(owners) < 2 or (kinds[child], frozenset(owners)) in blocks:
            continue
        blocks.add((kinds[child], frozenset(owners)))
        ordered = sorted(owners)
        for i, p in enumerate(ordered):
            for q in ordered[i + 1 :]:
                related = p in parents.get(q, ()) or q in parents.get(p, ())
                # Blocks of one split are several, whatever is tied afterwards.
                apart = roles.get((child, p), none) & roles.get((child, q), none)
                if not (related or apart) and owned[p, kinds[child]] == owned[q, kinds[child]]:
                    pairs.add((p, q))
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def _nest(parents: dict[int, set[int]]) -> None:
    """Let a block that lies wholly within another belong to it."""
    owned: dict[int, set[int]] = defaultdict(set)
    for child, owners in parents.items():
        for owner in owners:
            owned[owner].add(child)
    nested: set[tuple[int, int]] = set()
    for owners in {frozenset(o) for o in parents.values() if len(o) > 1}:
        for small in owners:
            for large in owners:
                if small != large and owned[small] < owned[large]:
                    nested.add((small, large))
    for small, large in nested:
        parents.setdefault(small, set()).add(large)


def _reduce(parents: dict[int, set[int]]) -> None:
    """Drop owners that own another owner."""
    known: dict[int, set[int]] = {}

    def ancestors(c: int, trail: frozenset[int] = frozenset()) -> set[int]:
        if c not in known:
            owners_above: set[int] = set()
            for owner in parents.get(c, ()):
                if owner not in trail:
                    owners_above |= {owner} | ancestors(owner, trail | {c})
            known[c] = owners_above
        return known[c]

    for c, owners in list(parents.items()):
        if len(owners) > 1:
            above: set[int] = set().union(*(ancestors(o, frozenset({c})) for o in owners))
            parents[c] = owners - above or owners


def _unreached(walk: Walk, of: np.ndarray, places: dict[int, list[Where]]) -> set[int]:
    """Return the classes of positions that every cut leaves out and that no other tensor shares.

    Those are the rows of a table of positions behind the length of the example: a longer input reads
    them, each in its place.
    """
    none = np.zeros(0, np.int64)
    left_out = of[np.concatenate([none, *walk.ledger.left_out])]
    taken = of[np.concatenate([none, *walk.ledger.taken])]
    unreached = np.setdiff1d(left_out, taken).tolist()
    return {c for c in unreached if len({place for place, _, _ in places.get(c, ())}) == 1}


def _rise(fixed: dict[int, str], parents: dict[int, set[int]]) -> None:
    """Fix whatever owns something fixed."""
    todo = list(fixed)
    while todo:
        c = todo.pop()
        for owner in parents.get(c, ()):
            if owner not in fixed:
                fixed[owner] = fixed[c]
                todo.append(owner)


def _marks(walk: Walk, of: np.ndarray, kinds: Mapping[int, object]) -> dict[int, frozenset[int]]:
    marks: dict[int, set[int]] = defaultdict(set)
    numbers: dict[object, int] = {}
    for c, kind in kinds.items():
        marks[c].add(-1 - numbers.setdefault(kind, len(numbers)))
    for nodes, colours in walk.ledger.marks:
        for c, colour in zip(of[nodes].tolist(), colours.tolist(), strict=True):
            marks[c].add(colour)
    return {c: frozenset(colours) for c, colours in marks.items()}


def _roles(rows: np.ndarray, of: np.ndarray) -> dict[tuple[int, int], frozenset[int]]:
    roles_of: dict[tuple[int, int], set[int]] = defaultdict(set)
    named = rows[rows[:, 2] > 0]
    pairs = np.stack([of[named[:, 0]], of[named[:, 1]]], axis=1)
    for (child, owner), role in zip(pairs.tolist(), named[:, 2].tolist(), strict=True):
        roles_of[child, owner].add(role)
    return {pair: frozenset(roles) for pair, roles in roles_of.items()}


def _places(walk: Walk, of: np.ndarray) -> dict[int, list[Where]]:
    places: dict[int, list[Where]] = defaultdict(list)
    for place, dim in walk.axes.items():
        if not dim.moves:
            continue
        nodes = of[dim.nodes].reshape(-1, dim.size)
        for copy, row in enumerate(nodes.tolist()):
            for position, c in enumerate(row):
                places[c].append((place, copy, position))
    return dict(places)
