"""Exact assignment of nested groups: units of a root, and the best arrangement inside each pair.

value(i, j) of putting B's unit j at slot i is what the parent's own positions say plus, for every
child group, the best inner assignment between copy i of A and copy j of B; so the children are
solved for all pairs first, then their parent on top of their values.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regraft.symmetry.spec.permutation import Permutation

from .assignment import assign, assigned
from .blocks import Block


def solve_nested(
    block: Block, gains: Mapping[str, Tensor], *, solver: str = "auto", threads: int = 1
) -> dict[str, Tensor]:
    """Return the permutations of a block's free groups with the largest total gain.

    Args:
        block: The block; its groups come parents before children.
        gains: Group -> [units, units]: gain of B's unit v at slot u, for the group alone.
        solver: See `assign`.
        threads: Threads for the inner assignments.

    Raises:
        InputError: A gain is not finite.
    """
    total = {name: gains[name].detach().cpu() for name in block.free}
    inner: dict[str, Tensor] = {}
    for name in reversed(block.free[1:]):
        group = block.tree.groups[name]
        m, n = group.copies, group.size
        stack = total[name].reshape(m, n, m, n).permute(0, 2, 1, 3).reshape(m * m, n, n)
        chosen = assign(stack, solver=solver, threads=threads)
        values = assigned(stack, chosen).reshape(m, m)
        inner[name] = chosen.reshape(m, m, n)
        parent = group.parent or ""
        total[parent] = total[parent].double() + values
    root = block.root
    perms = {root: assign(total[root], solver=solver)}
    units = {root: perms[root]}
    for name in block.free[1:]:
        group = block.tree.groups[name]
        sources = units[group.parent or ""]
        perms[name] = inner[name][torch.arange(group.copies), sources]
        units[name] = (sources[:, None] * group.size + perms[name]).flatten()
    return perms


def unit_maps(block: Block, permutation: Permutation) -> dict[str, Tensor]:
    """Return for each free group which of B's units lies at each slot, int64 [units]."""
    maps: dict[str, Tensor] = {}
    for name in block.free:
        group = block.tree.groups[name]
        perm = permutation[name].reshape(group.copies, group.size)
        parents = torch.zeros(1, dtype=torch.int64) if group.parent is None else maps[group.parent]
        maps[name] = (parents[:, None] * group.size + perm).flatten()
    return maps


def total_gain(block: Block, gains: Mapping[str, Tensor], permutation: Permutation) -> float:
    """Return the gain of a permutation of the free groups, summed in float64."""
    maps = unit_maps(block, permutation)
    return float(sum(assigned(gains[name], maps[name]).item() for name in block.free))
