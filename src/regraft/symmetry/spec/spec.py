"""The permutation symmetries of an architecture, and what they do to a state dict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from regraft.checkpoints.state import check_state
from regraft.errors import InputError

from .group import NOT_REACHED, TRAINING_ONLY, Group, Pin, Site
from .permutation import Permutation, identity, permutation_error, random_permutation
from .printing import describe
from .spec_json import read_fields, to_json


@dataclass(frozen=True, eq=False)
class PermutationSpec:
    """The permutation symmetries of an architecture.

    Attributes:
        groups: Groups by name, parents before their children.
        shapes: Shape of every tensor of the state dict.
        aliases: Other names of tied tensors -> the name under which `groups` knows them.
        pins: What cannot move, and why.
        checked: Largest relative error |f(πθ) - f(θ)| / |f(θ)| of the numerical proof, or None.
    """

    groups: Mapping[str, Group]
    shapes: Mapping[str, tuple[int, ...]]
    aliases: Mapping[str, str] = field(default_factory=dict)
    pins: tuple[Pin, ...] = ()
    checked: float | None = None

    @cached_property
    def by_tensor(self) -> dict[str, list[tuple[Group, Site]]]:
        """Groups and sites of each tensor that anything permutes, parents before children."""
        sites: dict[str, list[tuple[Group, Site]]] = {}
        for group in self.groups.values():
            for site in group.sites:
                sites.setdefault(site.tensor, []).append((group, site))
        return sites

    def children(self, name: str) -> list[Group]:
        """Return the groups that each unit of the named group holds a copy of."""
        return [g for g in self.groups.values() if g.parent == name]

    def identity(self) -> Permutation:
        """Return the permutation that moves nothing."""
        return identity(self)

    def random(self, seed: int, groups: Iterable[str] | None = None) -> Permutation:
        """Return a uniformly random permutation of all groups, or of those named.

        Args:
            seed: Seed of the stream; equal seeds give equal permutations everywhere.
            groups: Names of the groups to permute; the rest stay in place.
        """
        return random_permutation(self, seed, groups)

    def check_state(self, state: Mapping[str, Tensor], what: str = "state") -> None:
        """Refuse a state dict that is not of this architecture.

        Raises:
            InputError: A tensor is missing, unknown or of another shape; the first is named.
        """
        check_state(state, self.shapes, what)

    def apply(self, state: Mapping[str, Tensor], permutation: Permutation) -> dict[str, Tensor]:
        """Return π(θ): slot i of every permuted axis holds what was at position π[i].

        `W[π]` for the axis of a plain group; heads move as blocks, and what is in slot i is then
        permuted by copy i of the child groups. Tensors that nothing permutes are returned as they
        are; the input is not changed.

        Args:
            state: State dict θ of the architecture, any dtypes and devices.
            permutation: Permutation π of the groups; those it does not name stay.

        Raises:
            InputError: The state dict is of another architecture, or the permutation is not one.
        """
        self.check_state(state)
        error = permutation_error(self, permutation)
        if error:
            raise InputError(error)
        return {k: self.apply_to(k, tensor, permutation) for k, tensor in state.items()}

    def apply_to(
        self,
        name: str,
        tensor: Tensor,
        permutation: Permutation,
        *,
        skip: Iterable[tuple[str, int]] = (),
    ) -> Tensor:
        """Return one tensor of π(θ), as `apply` does without its checks.

        Args:
            name: Name of the tensor.
            tensor: The tensor.
            permutation: Permutation of the groups; those it does not name stay.
            skip: (group, axis) pairs to leave in place.
        """
        left_out = set(skip)
        moves: dict[int, list[tuple[Group, Site]]] = {}
        over: list[tuple[Group, Site]] = []
        for group, site in self.by_tensor.get(self.aliases.get(name, name), ()):
            if group.name not in permutation or (group.name, site.axis) in left_out:
                continue
            if site.over is None:
                moves.setdefault(site.axis, []).append((group, site))
            else:
                over.append((group, site))
        for axis, moved_by in moves.items():
            index = torch.arange(tensor.shape[axis])
            for group, site in moved_by:
                index = permute_index(
                    index, site.index, permutation[group.name].reshape(-1, group.size)
                )
            tensor = tensor.index_select(axis, index.to(tensor.device))
        for group, site in over:
            tensor = permute_within(tensor, site, permutation[group.name].reshape(-1, group.size))
        return tensor

    @property
    def left_behind(self) -> tuple[str, ...]:
        """Parameters without a part in what was traced that may read units which move.

        Auxiliary heads that only training uses, and what the example inputs do not reach, such as the
        head of another task. They are not permuted. They fit a permuted network no longer, and must be
        trained anew or dropped.
        """
        return tuple(
            dict.fromkeys(p.tensor for p in self.pins if p.reason in (TRAINING_ONLY, NOT_REACHED))
        )

    @property
    def free_share(self) -> float:
        """Share of the positions of all axes of matrices and kernels that can move.

        What moves only within blocks that stay, such as the dimensions of pinned heads, does not count.
        """
        moved = total = 0
        held = {(p.tensor, p.axis): p.within for p in self.pins}
        for name, shape in self.shapes.items():
            if name in self.aliases or len(shape) < 2:
                continue
            for axis, size in enumerate(shape):
                if len(shape) > 2 and axis >= 2:
                    continue
                total += size
                sites = [s for _, s in self.by_tensor.get(name, ()) if s.axis == axis]
                if sites:
                    moved += len(torch.cat([s.index.flatten() for s in sites]).unique())
                    moved -= held.get((name, axis), 0)
        return moved / total if total else 0.0

    def to_json(self) -> str:
        """Return the spec as JSON text."""
        return to_json(self)

    @staticmethod
    def from_json(text: str) -> PermutationSpec:
        """Read what `to_json` wrote.

        Raises:
            InputError: The text is no spec, or of a newer schema.
        """
        return PermutationSpec(**read_fields(text))

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups.values())

    def __len__(self) -> int:
        return len(self.groups)

    def __str__(self) -> str:
        return describe(self)


def permute_index(index: Tensor, positions: Tensor, perm: Tensor) -> Tensor:
    """Let slot (i, j) hold what slot (i, perm[i, j]) held; positions int64 [m, n, r]."""
    out = index.clone()
    source = positions.gather(1, perm.to(positions.device)[:, :, None].expand_as(positions))
    out[positions] = index[source]
    return out


def permute_within(tensor: Tensor, site: Site, perm: Tensor) -> Tensor:
    """Permute each copy's units within its slices of the other axis, perm int64 [m, n]."""
    if site.over is None or site.slices is None:
        raise ValueError(f"the site of {site.tensor} lies over no other axis")
    out = tensor.clone()
    for i, rows in enumerate(site.slices.to(tensor.device)):
        index = torch.arange(tensor.shape[site.axis])
        index = permute_index(index, site.index[i : i + 1], perm[i : i + 1]).to(tensor.device)
        part = out.index_select(site.over, rows).index_select(site.axis, index)
        # By assignment, which formats of eight bits have, and not by index_copy_.
        out.movedim(site.over, 0)[rows] = part.movedim(site.over, 0)
    return out
