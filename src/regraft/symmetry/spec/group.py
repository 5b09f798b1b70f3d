"""What may be permuted: groups of interchangeable units, and where each lies in the tensors.

A group is a set of n units of a network (channels, hidden neurons, attention heads) that may change
places without changing its function, as long as every tensor that mentions them follows. Groups
nest: each head holds a copy of the group of its dimensions, so a permutation moves heads, and
dimensions within each head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Site:
    """Where the units of a group lie on one axis of one tensor.

    Attributes:
        tensor: Name in the state dict.
        axis: Axis of the tensor.
        index: Positions along the axis, int64 [m, n, r]: unit j of copy i occupies `index[i, j]`,
            in the same order for every unit (a flattened channel has r positions, a plain one 1).
        over: Another axis, of which copy i is about some slices only (the input channels of a grouped
            convolution lie over its output channels), or None where it is about all of them.
        slices: Which slices of `over` each copy is about, int64 [m, s].
    """

    tensor: str
    axis: int
    index: Tensor
    over: int | None = None
    slices: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Group:
    """Interchangeable units.

    Attributes:
        name: Unique name, after the first tensor that it permutes.
        size: Number of units n.
        sites: Every place of the units, in the order of the state dict.
        parent: Name of the group each unit of which holds a copy of this one, or None.
        copies: Number of copies m: 1, or the number of all the parent's units.
    """

    name: str
    size: int
    sites: tuple[Site, ...]
    parent: str | None = None
    copies: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a permutation of this group: (n,), or (m, n) within a parent."""
        return (self.size,) if self.parent is None else (self.copies, self.size)


UNUSED = "it is not used in forward"
"""Why a tensor stays that no operation takes."""
TRAINING_ONLY = "only training uses it, so that it does not follow the units that it may read"
"""Why a tensor stays that no operation takes in evaluation mode."""
NOT_REACHED = (
    "the example inputs do not reach it, so that it does not follow the units that it may read"
)
"""Why a tensor stays that no operation takes with these inputs: another task or branch may use it."""


@dataclass(frozen=True)
class Pin:
    """An axis that may not be permuted, or not wholly, and why.

    Attributes:
        tensor: Name in the state dict.
        axis: Axis of the tensor.
        size: Length of the axis.
        pinned: How many of its positions cannot move.
        reason: Which operation of which module fixes them, or why else.
        within: How many can move only within blocks that stay, such as the dimensions of pinned heads.
    """

    tensor: str
    axis: int
    size: int
    pinned: int
    reason: str
    within: int = 0


class Symmetries(Protocol):
    """What permutations, JSON and words know of a `PermutationSpec`."""

    @property
    def groups(self) -> Mapping[str, Group]:
        """Groups by name, parents before their children."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor of the state dict."""
        ...

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names of tied tensors."""
        ...

    @property
    def pins(self) -> tuple[Pin, ...]:
        """What cannot move, and why."""
        ...

    @property
    def checked(self) -> float | None:
        """Largest relative error of the proof, or None."""
        ...

    @property
    def left_behind(self) -> tuple[str, ...]:
        """Tensors that only training uses, or other inputs than those of the example."""
        ...

    @property
    def free_share(self) -> float:
        """Share of the positions of all axes that can move."""
        ...

    def __iter__(self) -> Iterator[Group]: ...
    def __len__(self) -> int: ...
