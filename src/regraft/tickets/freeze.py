"""Freezing a random share of a random network: pruned for good, or locked into the subnetwork.

A position is pruned for good (its weight is 0), locked (its weight always stays) or free (searched).
Which is which is a function of seed, name and two counts, so that no file and no checkpoint holds it,
and scores, momenta and mask bits exist for the free positions alone.

References:
    Otsuka et al., "Partially frozen random networks contain compact strong lottery tickets",
    TMLR 2025.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from regraft import streams
from regraft.errors import InputError

from .allocate import Allocation, densities


@dataclass(frozen=True)
class FrozenPattern:
    """Which positions of one tensor are pruned for good, locked, or free.

    The positions are ranked by their 32-bit word of the stream of (seed, name#frozen), earlier
    positions first among equal words: the `pruned` lowest are pruned, the next `locked` are locked.

    Attributes:
        seed: Seed of the whole network.
        name: Name of the parameter: the key of its stream.
        numel: Number of positions.
        pruned: How many are pruned for good.
        locked: How many are locked.

    Raises:
        InputError: Counts below 0, or that leave no free position.
    """

    seed: int
    name: str
    numel: int
    pruned: int
    locked: int

    def __post_init__(self) -> None:
        if min(self.pruned, self.locked) < 0 or self.pruned + self.locked >= self.numel:
            raise InputError(
                f"weight {self.name!r} has {self.numel} positions, of which {self.pruned} are to be "
                f"pruned and {self.locked} locked: expected counts from 0 up that leave one free"
            )

    @property
    def searched(self) -> int:
        """Number of free positions."""
        return self.numel - self.pruned - self.locked

    def check_reach(self, sparsity: float) -> None:
        """Refuse a sparsity of this tensor that no choice among its free positions can give.

        Raises:
            InputError: Outside pruned <= s numel <= numel - locked, by more than a rounding.
        """
        wanted = sparsity * self.numel
        if not self.pruned - 1 <= wanted <= self.numel - self.locked + 1:
            low, high = self.pruned / self.numel, 1 - self.locked / self.numel
            raise InputError(
                f"sparsity={sparsity:g} cannot be reached in weight {self.name!r}: what is frozen "
                f"leaves [{low:.4g}, {high:.4g}]; choose a sparsity there, freeze less, or take "
                "scope='global'"
            )

    def parts(self) -> np.ndarray:
        """Return the part of each position, int8 [numel]: -1 pruned for good, 1 locked, 0 free."""
        words = streams.words32(self.seed, f"{self.name}#frozen", 0, self.numel)
        high = (words >> np.uint32(16)).astype(np.uint16)
        upto = np.cumsum(np.bincount(high, minlength=1 << 16))
        parts = _lowest(words, high, upto, self.pruned + self.locked).view(np.int8)
        if self.pruned:
            parts -= 2 * _lowest(words, high, upto, self.pruned).view(np.int8)
        return parts

    def free(self) -> np.ndarray:
        """Return the flat free positions in ascending order, int64 [numel - pruned - locked]."""
        return np.flatnonzero(self.parts() == 0)


def _lowest(words: np.ndarray, high: np.ndarray, upto: np.ndarray, count: int) -> np.ndarray:
    """Return the flags of the `count` lowest words, by the histogram of their upper halves."""
    if count == 0:
        return np.zeros(words.size, dtype=bool)
    edge = int(np.searchsorted(upto, count))
    chosen = high < edge
    inside = np.flatnonzero(high == edge)
    rest = count - (int(upto[edge - 1]) if edge else 0)
    chosen[inside[np.argsort(words[inside], kind="stable")[:rest]]] = True
    return chosen


@dataclass(frozen=True)
class Freezing:
    """Shares of a network's maskable weights that are frozen before the search.

    Each layer's frozen share is one minus its keep-density for the total 1 - F, F = pruned + locked,
    and its pruned share one minus that for 1 - pruned; the difference is locked. One position of
    each layer always stays free.

    Attributes:
        pruned: Share pruned for good, p.
        locked: Share locked into the subnetwork, l.
        allocation: How the shares spread over layers: `uniform`, `erk` (Erdős-Rényi kernel), `epl`
            (equal edges per layer) or `igq` (ideal gas quotas); see `regraft.tickets.densities`.

    Raises:
        InputError: A share outside [0, 1], or nothing left to search.
    """

    pruned: float = 0.0
    locked: float = 0.0
    allocation: Allocation = "uniform"

    def __post_init__(self) -> None:
        for name in ("pruned", "locked"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise InputError(f"{name}={value}: expected a share of the weights, in [0, 1]")
        if self.frozen >= 1.0:
            raise InputError(
                f"pruned={self.pruned:g} and locked={self.locked:g} freeze everything: expected "
                "shares that add up to less than 1, so that something is left to search"
            )

    @classmethod
    def balanced(
        cls, sparsity: float, frozen: float, allocation: Allocation = "uniform"
    ) -> Freezing:
        """Return the freezing that leaves the free part half kept, as far as it can.

        p = max(0, s - (1 - F) / 2), l = F - p, moved so that p <= s <= 1 - l: at a density of one
        half the search has the most subnetworks to choose from.

        Args:
            sparsity: Fraction of all weights removed, s.
            frozen: Share of the weights frozen, F.
            allocation: As the attribute.

        Raises:
            InputError: A share outside [0, 1], or F = 1.
        """
        for name, value in (("sparsity", sparsity), ("frozen", frozen)):
            if not 0.0 <= value <= 1.0:
                raise InputError(f"{name}={value}: expected a share of the weights, in [0, 1]")
        pruned = min(max(0.0, sparsity - (1.0 - frozen) / 2), frozen, sparsity)
        locked = min(frozen - pruned, 1.0 - sparsity)
        # Rounded: a share of 0.30000000000000004 would be written into every file.
        return cls(round(frozen - locked, 12), round(locked, 12), allocation)

    @property
    def frozen(self) -> float:
        """Share frozen in all, F = p + l."""
        return self.pruned + self.locked

    def patterns(
        self, shapes: Mapping[str, tuple[int, ...]], seed: int
    ) -> dict[str, FrozenPattern]:
        """Return the pattern of every tensor, by name.

        Args:
            shapes: Shapes by parameter name, in the order of the network.
            seed: Seed of the whole network.
        """
        sizes = list(shapes.values())
        kept = densities(sizes, 1.0 - self.frozen, self.allocation)
        unpruned = densities(sizes, 1.0 - self.pruned, self.allocation)
        out = {}
        for (name, shape), d_free, d_unpruned in zip(shapes.items(), kept, unpruned, strict=True):
            numel = math.prod(shape)
            frozen = min(round((1.0 - d_free) * numel), numel - 1)
            pruned = min(round((1.0 - d_unpruned) * numel), frozen)
            out[name] = FrozenPattern(seed, name, numel, pruned, frozen - pruned)
        return out

    def check_reach(self, sparsity: float) -> None:
        """Refuse a total sparsity that no choice among the free weights can give.

        At both ends of the reach there is no choice: at s = p all free weights are kept, and at
        s = 1 - l none is, but for the one with the highest score. Nothing is searched there, so a
        `UserWarning` says so.

        Raises:
            InputError: Outside p <= s <= 1 - l.
        """
        if not self.pruned - 1e-9 <= sparsity <= 1.0 - self.locked + 1e-9:
            raise InputError(
                f"sparsity={sparsity:g} cannot be reached: with pruned={self.pruned:g} and "
                f"locked={self.locked:g} it lies in [{self.pruned:g}, {1.0 - self.locked:g}], frozen "
                "weights included"
            )
        for end, fate in ((self.pruned, "keeps"), (1.0 - self.locked, "prunes")):
            if self.frozen and abs(sparsity - end) <= 1e-9:
                warnings.warn(
                    f"sparsity={sparsity:g} {fate} all free weights where pruned={self.pruned:g} and "
                    f"locked={self.locked:g}, so that nothing is searched: choose a sparsity between "
                    f"{self.pruned:g} and {1.0 - self.locked:g}",
                    stacklevel=4,  # of `edge_popup`'s caller
                )
