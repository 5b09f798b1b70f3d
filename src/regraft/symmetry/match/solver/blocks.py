"""What one step of the matcher solves at once: a root group with the groups inside its units.

Groups nest, and a unit of the parent can only be judged together with the best arrangement inside
it. Two groups inside the same units may meet in one tensor, though (inputs and outputs within the
groups of a grouped convolution; query heads and their dimensions within a key-value head): no
assignment finds both at once. So a tree of groups is covered by blocks, each the root and a set of
descendants that do not meet; within a block the solution is exact, and those left out keep their
arrangement inside the unit that they came with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from regraft.symmetry.spec.group import Group, Site
from regraft.symmetry.spec.spec import PermutationSpec

NEVER_COMPARED = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, eq=False)
class Term:
    """What one tensor says about the units of one group: gains[u, v] += <A at u, B at v>.

    Attributes:
        group: The group whose units are compared, the innermost of the block at these positions.
        tensor: Name of the tensor.
        axis: Axis on which the units lie.
        index: Positions int64 [m, n, r].
        over: The axis whose slices copy i is about, or None; see `Site`.
        slices: Those slices, int64 [m, s].
        keep: Another axis and its positions to look at, where a child over it sees the others.
        moving: Groups whose permutation changes what B holds here; none: the term is constant.
    """

    group: str
    tensor: str
    axis: int
    index: Tensor
    over: int | None = None
    slices: Tensor | None = None
    keep: tuple[int, Tensor] | None = None
    moving: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Block:
    """A root group and descendants that are solved together.

    Attributes:
        free: Names of the groups that are solved, parents before children; the root comes first.
        tree: All groups of the tree, as a spec of its own.
        terms: What the tensors say about them.
        quadratic: Whether a tensor has them on two axes, so that the terms depend on the solution.
    """

    free: tuple[str, ...]
    tree: PermutationSpec
    terms: tuple[Term, ...]
    quadratic: bool

    @property
    def root(self) -> str:
        """Name of the root group."""
        return self.free[0]

    @cached_property
    def fixed(self) -> tuple[str, ...]:
        """Groups of the tree that only follow."""
        return tuple(g for g in self.tree.groups if g not in self.free)

    @cached_property
    def reads(self) -> frozenset[str]:
        """Groups whose change makes another solution possible."""
        return frozenset().union(*(t.moving for t in self.terms)) if self.terms else frozenset()

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that the block's groups permute."""
        return tuple(dict.fromkeys(t.tensor for t in self.terms))


def make_blocks(
    spec: PermutationSpec, *, compared: Callable[[str], bool] | None = None, joint: bool = False
) -> list[Block]:
    """Return blocks that cover all groups of a spec, in its order.

    Args:
        spec: The groups.
        compared: Which tensors speak; by default all but the running statistics of norms.
        joint: Ignore the tensors: the gains will be given for each group (activations).
    """
    speaks = compared or (lambda name: not name.endswith(NEVER_COMPARED))
    names = [t for t in spec.by_tensor if t not in spec.aliases and speaks(t)]
    blocks = []
    for root in spec:
        if root.parent is not None:
            continue
        members = _tree(spec, root)
        tree = PermutationSpec({g.name: g for g in members}, {})
        mine = (
            []
            if joint
            else [t for t in names if any(g.name in tree.groups for g, _ in spec.by_tensor[t])]
        )
        for free in _cover(spec, members, mine):
            blocks.append(_block(spec, free, tree, mine))
    return blocks


def _tree(spec: PermutationSpec, root: Group) -> list[Group]:
    names = {root.name}
    for group in spec:
        if group.parent in names:
            names.add(group.name)
    return [g for g in spec if g.name in names]


def _cover(
    spec: PermutationSpec, members: list[Group], tensors: list[str]
) -> list[tuple[str, ...]]:
    """Return sets of groups, each closed under parents and free of groups that meet."""
    if len(members) == 1:
        return [(members[0].name,)]
    meet = _meetings(spec, members, tensors)
    left = [g.name for g in members]
    covers = []
    while left:
        chosen = set(ancestry(spec, left[0]))
        for name in [*left, *(g.name for g in members)]:
            above = ancestry(spec, name)
            apart = not any(frozenset((a, c)) in meet for a in above for c in chosen)
            if apart:
                chosen.update(above)
        covers.append(tuple(g.name for g in members if g.name in chosen))
        left = [n for n in left if n not in chosen]
    return covers


def ancestry(spec: PermutationSpec, name: str) -> list[str]:
    """Return a group, its parent, and so on up to the root, by name."""
    line = [name]
    while (parent := spec.groups[line[-1]].parent) is not None:
        line.append(parent)
    return line


def _meetings(
    spec: PermutationSpec, members: list[Group], tensors: list[str]
) -> set[frozenset[str]]:
    names = {g.name for g in members}
    meetings = set()
    for tensor in tensors:
        sites = [(g, s) for g, s in spec.by_tensor[tensor] if g.name in names]
        for i, (g, s) in enumerate(sites):
            for h, t in sites[:i]:
                related = g.name in ancestry(spec, h.name) or h.name in ancestry(spec, g.name)
                if not related and _meet(s, t):
                    meetings.add(frozenset((g.name, h.name)))
    return meetings


def _meet(s: Site, t: Site) -> bool:
    if s.axis == t.axis and s.over == t.over:
        return bool(torch.isin(s.index, t.index).any())
    return s.over == t.axis or t.over == s.axis or (s.over is not None and s.over == t.over)


def _block(
    spec: PermutationSpec, free: tuple[str, ...], tree: PermutationSpec, tensors: list[str]
) -> Block:
    terms: list[Term] = []
    quadratic = False
    for tensor in tensors:
        sites = [(g, s) for g, s in spec.by_tensor[tensor] if g.name in free]
        quadratic |= len({s.axis if s.over is None else s.over for _, s in sites}) > 1
        for group, site in sites:
            terms.extend(_terms(spec, set(free), tensor, group, site))
    return Block(free, tree, tuple(terms), quadratic)


def _terms(
    spec: PermutationSpec, free: set[str], tensor: str, group: Group, site: Site
) -> Iterable[Term]:
    """Return what a site adds beyond what the free groups inside its units say, if anything."""
    index, keep = site.index, None
    for child, inner in spec.by_tensor[tensor]:
        if child.name not in free or child is group or group.name not in ancestry(spec, child.name):
            continue
        if inner.over == site.axis and site.over is None:
            rest = torch.arange(spec.shapes[tensor][inner.axis])
            rest = rest[~torch.isin(rest, inner.index)]
            keep = (inner.axis, rest)
        elif inner.axis == site.axis:
            # Every unit is laid out alike, so that the first unit tells for all.
            refined = torch.isin(index[0, 0], inner.index)
            index = index[:, :, ~refined]
    if not index.shape[2] or (keep is not None and not len(keep[1])):
        return
    moving = _moving(spec, free, tensor, site, index)
    yield Term(group.name, tensor, site.axis, index, site.over, site.slices, keep, moving)


def _moving(
    spec: PermutationSpec, free: set[str], tensor: str, site: Site, index: Tensor
) -> frozenset[str]:
    own = site.axis if site.over is None else site.over
    mine = {site.axis: index.numpy().ravel()}
    if site.over is not None and site.slices is not None:
        mine[site.over] = site.slices.numpy().ravel()
    moving = set()
    for other, place in spec.by_tensor[tensor]:
        here = own in (place.axis, place.over)
        if other.name in moving or (other.name in free and (here or place.axis == site.axis)):
            continue  # known, or what is being solved
        theirs = {place.axis: place.index}
        if place.over is not None and place.slices is not None:
            theirs[place.over] = place.slices
        if not any(_apart(mine[a], theirs[a].numpy().ravel()) for a in mine.keys() & theirs.keys()):
            moving.add(other.name)
    return frozenset(moving)


def _apart(x: np.ndarray, y: np.ndarray) -> bool:
    """Return whether two sets of positions share none; segments of one axis, mostly."""
    return x.max() < y.min() or y.max() < x.min() or not np.isin(x, y).any()
