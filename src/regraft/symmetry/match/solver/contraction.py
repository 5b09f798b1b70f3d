"""From tensors to gains: the tensors of a term as one row a unit, and the sums of their products.

gains[u, v] = Σ over terms of <A's row u, B's row v>, B under the current permutation of all other
groups. Gains are kept from visit to visit and only differences are contracted: where another axis
has moved in few positions, the product is over those positions alone. Nothing is ever multiplied by
a permutation matrix.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from regraft.symmetry.spec.group import Site
from regraft.symmetry.spec.permutation import Permutation, compose, inverse
from regraft.symmetry.spec.spec import PermutationSpec, permute_index, permute_within

from .blocks import Block, Term
from .pairs import Pairs
from .rows import rows

_CHUNK = 2**24
"""Entries of stacked rows contracted at once: one GEMM for many pairs, without another copy of all."""

_MOST = 0.9
"""Share of changed positions above which leaving the others out costs more than it saves."""


@dataclass(frozen=True, eq=False)
class Frame:
    """How B's tensor lies while a term is contracted.

    Attributes:
        moved: Axis -> positions of B, int64 [L]; axes that nothing moves are absent.
        within: Permutations that act on slices only, applied after the axes.
    """

    moved: dict[int, Tensor]
    within: list[tuple[Site, Tensor]]

    def rows(self, tensor: Tensor, term: Term) -> Tensor:
        """Return B's rows in this frame."""
        if not self.within:
            return rows(tensor, term, self.moved)
        for axis, index in self.moved.items():
            tensor = tensor.index_select(axis, index.to(tensor.device))
        for site, perm in self.within:
            tensor = permute_within(tensor, site, perm)
        return rows(tensor, term, {})

    def same(self, other: Frame) -> bool:
        """Return whether B lies alike in both."""
        return (
            self.moved.keys() == other.moved.keys()
            and all(torch.equal(i, other.moved[a]) for a, i in self.moved.items())
            and all(
                torch.equal(p, q) for (_, p), (_, q) in zip(self.within, other.within, strict=True)
            )
        )


def frame(
    spec: PermutationSpec, block: Block, term: Term, now: Permutation, kept: Permutation
) -> Frame:
    """Return how B lies for a term.

    Args:
        spec: All groups.
        block: The block that is solved.
        term: The term.
        now: The permutation of all groups.
        kept: For groups of the block's tree that only follow: their permutation as B's own units
            hold it (see `arrangement`).
    """
    own = term.axis if term.over is None else term.over
    moved: dict[int, Tensor] = {}
    within = []
    for group, site in spec.by_tensor[term.tensor]:
        if group.name not in term.moving:
            continue
        here = own in (site.axis, site.over)
        if group.name in block.free and here:
            continue
        perm = kept[group.name] if here and group.name in kept else now[group.name]
        perm = perm.reshape(-1, group.size)
        if site.over is not None:
            within.append((site, perm))
            continue
        index = moved.get(site.axis)
        if index is None:
            index = torch.arange(spec.shapes[term.tensor][site.axis])
        moved[site.axis] = permute_index(index, site.index, perm)
    return Frame(moved, within)


def arrangement(block: Block, now: Permutation) -> Permutation:
    """Return how each unit of B is arranged inside by the groups of the tree that only follow.

    With g the whole permutation and s that of the free groups alone this is s⁻¹ g: solving for a
    new s' and composing gives the new g = s' (s⁻¹ g).
    """
    if not block.fixed:
        return {}
    mine = {name: now[name] for name in block.tree.groups}
    free = {name: now[name] for name in block.free}
    relative = compose(block.tree, mine, inverse(block.tree, free))
    return {name: relative[name] for name in block.fixed}


@dataclass(eq=False)
class Gains:
    """Gains of the groups of one block, brought up to date by differences.

    Attributes:
        matrices: Group -> [units, units].
        seen: Term -> the frame that its share of the gains was contracted in.
    """

    block: Block
    pairs: Pairs
    matrices: dict[str, Tensor] = field(default_factory=dict)
    frames: dict[int, Frame] = field(default_factory=dict)

    def update(
        self, now: Permutation, kept: Permutation, *, known: frozenset[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the gains under the current permutation of everything else.

        Args:
            now: Permutation of all groups.
            kept: See `arrangement`.
            known: Leave out terms that depend on other groups than these; all count by default.
        """
        for name in self.block.free:
            self._update(name, now, kept, known)
        return self.matrices

    @property
    def complete(self) -> bool:
        """Whether every term has been contracted."""
        stacked = self.pairs.stacked
        return all(i in self.frames for i, t in enumerate(self.block.terms) if t.tensor in stacked)

    def forget(self) -> None:
        """Free the memory; the next update starts from nothing."""
        self.matrices, self.frames = {}, {}

    def _update(
        self, name: str, now: Permutation, kept: Permutation, known: frozenset[str] | None
    ) -> None:
        spec, pairs = self.pairs.spec, self.pairs
        left: list[Tensor] = []
        right: list[Tensor] = []
        for i, term in enumerate(self.block.terms):
            if term.group != name or term.tensor not in pairs.stacked:
                continue
            if known is not None and not term.moving <= known:
                continue
            before = self.frames.get(i)
            if before is not None and not term.moving:
                continue
            after = frame(spec, self.block, term, now, kept)
            if before is not None and before.same(after):
                continue
            factor, dtype = pairs.factor(term.tensor), pairs.dtype_of(term.tensor)
            for a, b in pairs.of(term.tensor):
                x, y = _difference(term, before, after, a, b, dtype)
                x = x if factor == 1.0 else x * factor
                if 2 * x.shape[1] >= x.shape[0]:
                    self._contract(name, [x], [y])  # putting it beside others costs more
                    continue
                left.append(x)
                right.append(y)
                if sum(part.numel() for part in left) >= _CHUNK:
                    self._contract(name, left, right)
            self.frames[i] = after
        self._contract(name, left, right)
        if name not in self.matrices:
            group = spec.groups[name]
            units = group.copies * group.size
            summed = pairs.sums.get(name)
            self.matrices[name] = torch.zeros(units, units) if summed is None else summed.clone()

    def _contract(self, name: str, left: list[Tensor], right: list[Tensor]) -> None:
        """Add Σ left rightᵀ to the gains, in one product, and empty the lists."""
        if not left:
            return
        dtype = max((x.dtype for x in left), key=lambda d: d.itemsize)
        device = left[0].device
        x, y = (
            parts[0].to(dtype)
            if len(parts) == 1
            else torch.cat([p.to(device=device, dtype=dtype) for p in parts], dim=1)
            for parts in (left, right)
        )
        known = self.matrices.get(name)
        if known is None and (summed := self.pairs.sums.get(name)) is not None:
            known = summed.to(device=device, dtype=dtype, copy=True)
        if known is None:
            self.matrices[name] = torch.mm(x, y.T)
        else:
            self.matrices[name] = known.to(device=device, dtype=dtype).addmm_(x, y.T)
        left.clear()
        right.clear()


def _difference(
    term: Term, before: Frame | None, after: Frame, a: Tensor, b: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return rows of A and of B whose product is what changes in the gains."""
    if before is None:
        return rows(a, term, {}).to(dtype), after.rows(b, term).to(dtype)
    axes = list(after.moved)
    if len(axes) == 1 and axes[0] != term.axis and term.over is None and not after.within:
        axis = axes[0]
        old, new = before.moved[axis], after.moved[axis]
        kept = term.keep[1] if term.keep is not None and term.keep[0] == axis else None
        everywhere = torch.arange(len(new)) if kept is None else kept
        changed = everywhere[(old != new)[everywhere]]
        if len(changed) > _MOST * len(everywhere):
            changed = everywhere
        plain = Term(term.group, term.tensor, term.axis, term.index)
        x = rows(a, plain, {axis: changed}).to(dtype)
        y = rows(b, plain, {axis: new[changed]}).to(dtype)
        return x, y - rows(b, plain, {axis: old[changed]}).to(dtype)
    y = after.rows(b, term).to(dtype) - before.rows(b, term).to(dtype)
    return rows(a, term, {}).to(dtype), y
