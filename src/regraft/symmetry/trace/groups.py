"""From classes of nodes to groups of interchangeable units.

Units are interchangeable if they lie in the same places, belong to the same larger units, bear the
same marks, and if what belongs to one corresponds, one to one, to what belongs to the other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from regraft.symmetry.spec.group import Group, Pin, Site

from .classes import Classes, Place

_Key = tuple[Any, ...]
"""What units have in common; its last entries are what they are to owners, and those that may move."""


@dataclass
class _Family:
    """A group in the making: units [copies][size]."""

    units: list[list[int]]
    parent: _Family | None
    name: str = ""
    sites: list[Site] = field(default_factory=list)


def groups(
    resolved: Classes, order: Mapping[Place, int], over: Mapping[Place, tuple[int, int]]
) -> tuple[dict[str, Group], dict[int, _Family]]:
    """Return the groups by name, parents first, and the family of each class that moves.

    Args:
        resolved: The classes of a network.
        order: Rank of each axis, by which groups are named and sites are listed.
        over: For an axis that lies over another: that axis, and how many of its slices each copy is
            about.
    """
    resolver = _Resolver(resolved, order)
    families = resolver.families()
    matrices = {tensor for tensor, axis in order if axis == 1 and tensor.endswith("weight")}
    used: set[str] = set()
    result: dict[str, Group] = {}
    for family in families:
        sites = resolver.sites(family, over)
        if not sites:
            continue
        family.name = _name(family, sites, matrices, used)
        used.add(family.name)
        result[family.name] = Group(
            family.name,
            len(family.units[0]),
            tuple(sites),
            None if family.parent is None else family.parent.name,
            len(family.units),
        )
    return result, {c: f for f in families for copy in f.units for c in copy if f.name}


def _name(family: _Family, sites: list[Site], matrices: Container[str], used: set[str]) -> str:
    # The first layer that mentions the units, in the order of the network, is most often their own.
    site = next((s for s in sites if s.tensor in matrices), sites[0])
    stem = site.tensor.removesuffix(".weight").removesuffix(".bias")
    name = stem if family.parent is None else f"{family.parent.name}/{stem.rpartition('.')[2]}"
    number = 2
    whole = name
    while whole in used:
        whole, number = f"{name}#{number}", number + 1
    return whole


class _Resolver:
    def __init__(self, classes: Classes, order: Mapping[Place, int]) -> None:
        self.classes, self.order = classes, order
        self._below: dict[int, list[int]] = {}
        self._keys: dict[int, _Key] = {}
        self._copies: dict[Place, int] = defaultdict(int)
        self._size: dict[Place, int] = defaultdict(int)
        for places in classes.places.values():
            for place, copy, at in places:
                self._copies[place] = max(self._copies[place], copy + 1)
                self._size[place] = max(self._size[place], at + 1)

    def families(self) -> list[_Family]:
        classes = self.classes
        buckets: dict[_Key, list[int]] = defaultdict(list)
        everything = sorted(set(classes.places) | set(classes.children), key=self._first)
        for c in everything:
            if c in classes.fixed:
                continue
            buckets[(*self._key(c), self._parts_in(c), self._free_parents(c))].append(c)
        families: list[_Family] = []
        member: dict[int, tuple[_Family, int]] = {}
        # Parents come before children: what the units of a parent hold are copies of one family.
        levels: dict[int, list[_Key]] = defaultdict(list)
        for key, members in buckets.items():
            levels[self._depth(members[0])].append(key)
        for depth in sorted(levels):
            for same in self._siblings(levels[depth], buckets, member):
                family = self._family(same, member)
                if family is None:
                    continue
                families.append(family)
                for i, copy in enumerate(family.units):
                    for j, c in enumerate(copy):
                        member[c] = (family, i * len(copy) + j)
        return families

    def _depth(self, c: int) -> int:
        return 1 + max(map(self._depth, self._free_parents(c)), default=-1)

    def _siblings(
        self, ready: Iterable[_Key], buckets: Mapping, member: Mapping
    ) -> list[list[tuple[int | None, list[int]]]]:
        """Gather buckets that are copies of each other in the units of one parent family."""
        together: dict[_Key, list[tuple[int | None, list[int]]]] = defaultdict(list)
        for key in ready:
            parts, parents = key[-2:]
            moving = [p for p in parents if p in member]
            for members in self._interchangeable(buckets[key]):
                if len(members) < 2:
                    continue
                if not moving:
                    together[(key, members[0])].append((None, members))
                elif len(moving) == 1:
                    family, unit = member[moving[0]]
                    still = frozenset(p for p in parents if p not in member)
                    roles = frozenset((None if p in member else p, role) for p, role in parts)
                    same = (*key[:-2], roles, still, id(family), len(members))
                    together[same].append((unit, members))
        return list(together.values())

    def _family(
        self, copies: list[tuple[int | None, list[int]]], member: Mapping
    ) -> _Family | None:
        if copies[0][0] is None:
            return _Family([copies[0][1]], None)
        copies = sorted(copies)
        one = copies[0][1][0]
        moving = next(p for p in self._free_parents(one) if p in member)
        parent = member[moving][0]
        size = sum(map(len, parent.units))
        if [unit for unit, _ in copies] != list(range(size)):
            return None
        return _Family([members for _, members in copies], parent)

    def _interchangeable(self, members: list[int]) -> list[list[int]]:
        if not any(c in self.classes.children for c in members):
            return [members]
        kinds: list[list[int]] = []
        for c in members:
            for kind in kinds:
                if self._corresponds(kind[0], c):
                    kind.append(c)
                    break
            else:
                kinds.append([c])
        return kinds

    def _corresponds(self, a: int, b: int) -> bool:
        below_a, below_b = self.below(a), self.below(b)
        if len(below_a) != len(below_b):
            return False
        to = dict(zip(below_a, below_b, strict=True))
        if len(to) != len(set(below_b)):
            return False
        if any(x in self.classes.fixed or y in self.classes.fixed for x, y in to.items()):
            return False
        return all(self._same_part(x, y, to) for x, y in to.items() if x != a)

    def _same_part(self, x: int, y: int, to: Mapping[int, int]) -> bool:
        """Whether two classes are the same to their owners, which correspond."""
        owners = self.classes.parents.get(x, frozenset())
        return (
            self._key(x) == self._key(y)
            and {to.get(p, p) for p in owners} == self.classes.parents.get(y, frozenset())
            and all(self._role(x, p) == self._role(y, to.get(p, p)) for p in owners)
        )

    def below(self, c: int) -> list[int]:
        """Return a class and all that belongs to it, in an order that corresponds between equals."""
        if c not in self._below:
            below = dict.fromkeys([c])
            todo = [c]
            while todo:
                owner = todo.pop(0)
                kids = self.classes.children.get(owner, ())
                for child in sorted(kids, key=lambda k: (self._key(k)[0], self._first(k))):
                    if child not in below:
                        below[child] = None
                        todo.append(child)
            self._below[c] = list(below)
        return self._below[c]

    def _first(self, c: int) -> tuple[int, int, int, int]:
        places = self.classes.places.get(c)
        if not places:
            kids = self.classes.children.get(c, ())
            return min((self._first(k) for k in kids), default=(1 << 30, 0, 0, c))
        return min((self.order[p], copy, at, 0) for p, copy, at in places)

    def _key(self, c: int) -> _Key:
        """Return what equals have in common: places, marks, and owners that stay."""
        if c not in self._keys:
            counts: dict[int, int] = defaultdict(int)
            for place, _, _ in self.classes.places.get(c, ()):
                counts[self.order[place]] += 1
            owners = self.classes.parents.get(c, frozenset())
            self._keys[c] = (
                tuple(sorted(counts.items())),
                self.classes.marks.get(c, frozenset()),
                frozenset(p for p in owners if p in self.classes.fixed),
            )
        return self._keys[c]

    def _role(self, c: int, owner: int) -> frozenset[int]:
        return self.classes.roles.get((c, owner), frozenset())

    def _parts_in(self, c: int) -> frozenset[tuple[int, frozenset[int]]]:
        """Return the owners that tell a class what it is to them, with that."""
        owners = self.classes.parents.get(c, frozenset())
        return frozenset((p, self._role(c, p)) for p in owners if self._role(c, p))

    def _free_parents(self, c: int) -> frozenset[int]:
        owners = self.classes.parents.get(c, frozenset())
        return frozenset(p for p in owners if p not in self.classes.fixed)

    def sites(self, family: _Family, over: Mapping[Place, tuple[int, int]]) -> list[Site]:
        """Return where the units of a family lie, axis by axis."""
        positions: dict[Place, list[list[list[int]]]] = {}
        slices: dict[Place, list[list[int]]] = {}
        for i, copy in enumerate(family.units):
            for j, unit in enumerate(copy):
                for place, copies, at in self._occupied(unit, over):
                    if place not in positions:
                        positions[place] = [[[] for _ in same] for same in family.units]
                    positions[place][i][j] += at
                    if copies is not None:
                        if place not in slices:
                            slices[place] = [[] for _ in family.units]
                        slices[place][i] = copies
        sites = []
        for place in sorted(positions, key=lambda p: self.order[p]):
            index = torch.tensor(positions[place], dtype=torch.int64)
            if place not in slices:
                sites.append(Site(place[0], place[1], index))
                continue
            axis, each = over[place]
            rows = torch.tensor(slices[place])[:, :, None] * each + torch.arange(each)
            sites.append(Site(place[0], place[1], index, axis, rows.flatten(1)))
        return sites

    def _occupied(
        self, unit: int, over: Mapping[Place, tuple[int, int]]
    ) -> list[tuple[Place, list[int] | None, list[int]]]:
        """Return for each axis of a unit: the copies it is about (None: all), and its positions."""
        by_place: dict[Place, list[tuple[int, int]]] = defaultdict(list)
        for c in self.below(unit):
            for place, copy, at in self.classes.places.get(c, ()):
                by_place[place].append((copy, at))
        for place in by_place.keys() & over.keys():
            # A whole block that others lie over moves with its own axis, not with theirs.
            held = Counter(copy for copy, _ in set(by_place[place]))
            left = [(copy, at) for copy, at in by_place[place] if held[copy] < self._size[place]]
            by_place[place] = left
        occupied: list[tuple[Place, list[int] | None, list[int]]] = []
        for place, where in by_place.items():
            if not where:
                continue
            if place not in over:
                occupied.append((place, None, [at for _, at in where]))
                continue
            copies = sorted({copy for copy, _ in where})
            at = [a for copy, a in where if copy == copies[0]]
            everywhere = len(copies) == self._copies[place]
            occupied.append((place, None if everywhere else copies, at))
        return occupied


def pins(
    resolved: Classes,
    order: Mapping[Place, int],
    moving: Mapping[int, object],
    quiet: Iterable[Place],
) -> tuple[Pin, ...]:
    """Return for every axis that cannot move wholly how much of it stays, and why."""
    stays: dict[Place, dict[int, str]] = defaultdict(dict)
    within: dict[Place, dict[int, str]] = defaultdict(dict)
    sizes: dict[Place, int] = defaultdict(int)
    moved = set(moving)
    for c in moving:
        _add_below(resolved, c, moved)
    silent = set(quiet)
    for c, places in resolved.places.items():
        for place, _, at in places:
            sizes[place] = max(sizes[place], at + 1)
            if c not in moved and place not in silent:
                stays[place].setdefault(at, resolved.fixed.get(c, _ALONE))
            elif place not in silent:
                block = next((p for p in resolved.parents.get(c, ()) if p in resolved.fixed), None)
                if block is not None:
                    within[place].setdefault(at, resolved.fixed[block])
    result = []
    for place in sorted(stays.keys() | within.keys(), key=lambda p: order[p]):
        held, blocks = stays.get(place, {}), within.get(place, {})
        reasons = list(dict.fromkeys([*held.values(), *blocks.values()]))
        why = "; ".join(reasons[:3])
        result.append(Pin(*place, sizes[place], len(held), why, len(blocks)))
    return tuple(result)


_ALONE = "no other position has the same part in the network"


def _add_below(resolved: Classes, c: int, into: set[int]) -> None:
    for child in resolved.children.get(c, ()):
        if child not in into:
            into.add(child)
            _add_below(resolved, child, into)
