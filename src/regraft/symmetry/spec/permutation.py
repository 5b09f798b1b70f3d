"""Permutations of the groups of a spec: a plain dict of index tensors, and their algebra.

`perm[i]` is the position in B of the unit that goes to slot i, so that a plain axis becomes
`W[perm]`. A group within a parent has one permutation for each unit of the parent, by the slot of
that unit: [m, n].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from regraft import streams
from regraft.errors import InputError

from .group import Group, Symmetries

Permutation: TypeAlias = Mapping[str, Tensor]
"""Group name -> int64 [n], or [m, n] within a parent; groups that are absent stay in place."""


def identity(spec: Symmetries) -> Permutation:
    """Return the permutation that moves nothing."""
    return {g.name: torch.arange(g.size).expand(g.shape).clone() for g in spec}


def random_permutation(
    spec: Symmetries, seed: int, groups: Iterable[str] | None = None
) -> Permutation:
    """Return a uniformly random permutation of the named groups, the others in place.

    Raises:
        InputError: A name is no group of the spec.
    """
    chosen = set(spec.groups if groups is None else groups)
    unknown = chosen - set(spec.groups)
    if unknown:
        raise InputError(
            f"group {min(unknown)!r} is unknown: expected one of {', '.join(spec.groups)}"
        )
    permutation = {}
    for group in spec:
        if group.name not in chosen:
            permutation[group.name] = torch.arange(group.size).expand(group.shape).clone()
            continue
        copies = [streams.permutation(seed, group.name, i, group.size) for i in range(group.copies)]
        permutation[group.name] = torch.stack(copies).reshape(group.shape)
    return permutation


def compose(spec: Symmetries, first: Permutation, then: Permutation) -> Permutation:
    """Return the permutation p with apply(p) = apply(then) after apply(first).

    p[i] = first[then[i]]; within a parent, what slot i holds came from slot then[i] of the parent,
    so copy i is first[then_parent[i]] indexed by then[i].

    Raises:
        InputError: One of them is no permutation of the spec.
    """
    _refuse(spec, first, then)
    composed: dict[str, Tensor] = {}
    for group in spec:
        a, b = (_of(group, p) for p in (first, then))
        source = _parent_units(spec, group, then)
        composed[group.name] = a[source].gather(1, b).reshape(group.shape)
    return composed


def inverse(spec: Symmetries, permutation: Permutation) -> Permutation:
    """Return the permutation that undoes another.

    Raises:
        InputError: It is no permutation of the spec.
    """
    _refuse(spec, permutation)
    inverted: dict[str, Tensor] = {}
    for group in spec:
        source = _parent_units(spec, group, permutation)
        undone = torch.argsort(_of(group, permutation), dim=1)
        inverted[group.name] = undone[torch.argsort(source)].reshape(group.shape)
    return inverted


def _refuse(spec: Symmetries, *permutations: Permutation) -> None:
    for permutation in permutations:
        error = permutation_error(spec, permutation)
        if error:
            raise InputError(error)


def _of(group: Group, permutation: Permutation) -> Tensor:
    """Return the permutation of a group as [m, n], the identity where it is not named."""
    if group.name not in permutation:
        return torch.arange(group.size).expand(group.copies, group.size)
    return permutation[group.name].reshape(group.copies, group.size)


def _parent_units(spec: Symmetries, group: Group, permutation: Permutation) -> Tensor:
    """Return for each unit of the parent, by slot, which unit it was before: int64 [m]."""
    if group.parent is None:
        return torch.zeros(1, dtype=torch.int64)
    parent = spec.groups[group.parent]
    outer = _parent_units(spec, parent, permutation)
    within = _of(parent, permutation)
    return (outer[:, None] * parent.size + within).flatten()


def permutation_error(spec: Symmetries, permutation: Permutation) -> str | None:
    """Return what is wrong with a permutation of a spec, in one sentence, or None."""
    for name, perm in permutation.items():
        if name not in spec.groups:
            return f"permutation: {name!r} is no group of this architecture"
        group = spec.groups[name]
        if not isinstance(perm, Tensor):
            return f"permutation of {name!r}: got a {type(perm).__name__}, expected a tensor"
        if perm.is_floating_point() or tuple(perm.shape) != group.shape:
            return (
                f"permutation of {name!r}: got {perm.dtype} {tuple(perm.shape)}, expected int64 "
                f"{group.shape}"
            )
        ordered = perm.reshape(-1, group.size).sort(dim=1).values
        if not torch.equal(ordered.cpu(), torch.arange(group.size).expand_as(ordered)):
            return f"permutation of {name!r}: expected each of 0 to {group.size - 1} exactly once"
    return None
