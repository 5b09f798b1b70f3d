"""Matching over many pairs that come one by one: Σ_t <A_t, π(B_t)> for a growing t.

What one pair adds to the gains of each group is added under the permutation at which they stand, so
that a solution after one more pair costs that pair, not all of them; and of tensors that only one
group permutes the running sum is kept, not the pairs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.symmetry.match.solver.contraction import Gains
from regraft.symmetry.match.solver.objective import MatchingObjective
from regraft.symmetry.match.solver.pairs import Pairs
from regraft.symmetry.match.solver.rows import rows
from regraft.symmetry.match.solver.solve import Descent
from regraft.symmetry.spec.permutation import Permutation
from regraft.symmetry.spec.spec import PermutationSpec


@dataclass(frozen=True, kw_only=True)
class Solver:
    """How each matching is solved; see `regraft.symmetry.match.match.match`."""

    seed: int = 0
    max_sweeps: int = 100
    tolerance: float = 1e-7
    workers: int | None = None
    solver: str = "auto"


class GradientPairs:
    """Pairs of gradients (or of displacements, or weights), and the permutation that fits them best.

    Args:
        spec: The symmetries.
        start: The permutation to start from.
        solver: How to solve.
        store: Dtype to keep tensors of two permuted axes in, None for their own.

    Attributes:
        now: The permutation found last.
        value: Σ <A_t, π(B_t)> of it.
        identity: The same of the identity.
        sweeps: Sweeps of the last solution.
        count: Number of pairs.
        contraction: Seconds of contraction in all.
        assignment: Seconds of assignment in all.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        start: Permutation,
        solver: Solver,
        *,
        store: torch.dtype | None = None,
    ) -> None:
        self.spec, self.how, self.store = spec, solver, store
        self.pairs = Pairs(spec, summed=True)
        self.now: dict[str, Tensor] = dict(start)
        self.value = self.identity = 0.0
        self.sweeps = self.count = 0
        self.contraction = self.assignment = 0.0
        self._gains: list[Gains] | None = None
        self._norms: dict[str, list[float]] = {}

    def add(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: tuple[str, str]) -> None:
        """Add a pair: that of the network that stays, and that of the one that is permuted.

        Raises:
            InputError: See `Pairs.add`.
        """
        before = {k: v.clone() for k, v in self.pairs.sums.items()} if self._gains else {}
        # Apart, so that what is summed is not kept along with what is not.
        summed, kept = ({}, {}), ({}, {})
        for side, state in enumerate((a, b)):
            for name in self.pairs.names:
                if name not in state:
                    continue
                if name in self.pairs._terms:
                    summed[side][name] = state[name]
                else:
                    kept[side][name] = state[name].to(self.store or state[name].dtype)
        for one, two in (summed, kept):
            if one or two:
                self.pairs.add(one, two, names=names)
        a, b = ({**summed[side], **kept[side]} for side in (0, 1))
        self.count += 1
        self._measure(a, b)
        for gains in self._gains or ():
            self._extend(gains, a, b, before)

    def solve(
        self,
        start: Permutation | None = None,
        *,
        grow: bool = False,
        seed: int = 0,
        sweeps: int | None = None,
    ) -> Permutation:
        """Return the permutation that coordinate descent finds.

        Args:
            start: Permutation to start from; the one found last by default.
            grow: Let the descent find its start; see `Descent.grow`.
            seed: Added to the solver's seed, so that each solution has an order of its own.
            sweeps: Sweeps at most, instead of the solver's.
        """
        if start is not None and any(not torch.equal(p, self.now[k]) for k, p in start.items()):
            self.now = {**self.now, **start}
            self.value = MatchingObjective(self.pairs)(self.now)
        if grow:  # which asks for gains that leave out what is not known yet
            self._gains = None
        descent = Descent(
            self.pairs,
            self.now,
            seed=self.how.seed + seed,
            tolerance=self.how.tolerance,
            workers=self.how.workers or min(os.cpu_count() or 1, 4),
            solver=self.how.solver,
        )
        if self._gains is not None:
            descent._gains = self._gains
        if grow:
            descent.grow()
            self.value = descent._measure(descent.now)
        descent.run(self.how.max_sweeps if sweeps is None else sweeps, measure=False)
        # Nothing says where the units of a dead group belong, and growing has put them anywhere.
        still = {name: self.now[name] for name in self.dead} if grow else {}
        self._gains, self.now = descent._gains, {**descent.now, **still}
        self.value += math.fsum(descent.gained.values())
        self.sweeps = descent.sweeps
        self.contraction += descent.seconds.contraction
        self.assignment += descent.seconds.assignment
        return dict(self.now)

    @property
    def compared(self) -> tuple[str, ...]:
        """Names of the tensors that are matched."""
        return self.pairs.names

    @property
    def dead(self) -> tuple[str, ...]:
        """Groups all of whose tensors were zero so far in one of the networks."""
        names = []
        for group in self.spec:
            tensors = {s.tensor for s in group.sites if s.tensor in self._norms}
            sums = [math.fsum(self._norms[t][side] for t in tensors) for side in (0, 1)]
            if tensors and min(sums) == 0.0:
                names.append(group.name)
        return tuple(names)

    def cosine(self, value: float) -> float:
        """Return the cosine that a value of the objective is, over all pairs as one vector."""
        squares = [math.fsum(n[side] for n in self._norms.values()) for side in (0, 1)]
        return value / math.sqrt(squares[0] * squares[1]) if min(squares) > 0 else 0.0

    def _measure(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        """Bring norms and both objectives up to date by one pair."""
        products, names = [], [n for n in self.pairs.names if n in a]
        for name in names:
            x, y = a[name], b[name].to(a[name].device)
            z = self.spec.apply_to(name, y, self.now)
            products += [inner(x, x), inner(y, y), inner(x, y), inner(x, z)]
        values = torch.stack(products).tolist() if products else []
        for i, name in enumerate(names):
            own = self._norms.setdefault(name, [0.0, 0.0])
            own[0] += values[4 * i]
            own[1] += values[4 * i + 1]
        self.identity += math.fsum(values[2::4])
        self.value += math.fsum(values[3::4])

    def _extend(
        self,
        gains: Gains,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        before: Mapping[str, Tensor],
    ) -> None:
        """Add what a new pair says to gains that are kept, under the frames they were taken in."""
        for i, term in enumerate(gains.block.terms):
            lies = gains.frames.get(i)
            if lies is None or term.tensor not in a or term.tensor in self.pairs._terms:
                continue
            dtype = self.pairs.dtype_of(term.tensor)
            x = rows(a[term.tensor], term, {}).to(dtype)
            y = lies.rows(b[term.tensor].to(x.device), term).to(dtype)
            gains._contract(term.group, [x], [y])
        for name in gains.block.free:
            total = self.pairs.sums.get(name)
            known = gains.matrices.get(name)
            if total is None or known is None:
                continue
            new = total - before[name] if name in before else total
            known.add_(new.to(known.device, known.dtype))


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Return <x, y> as float64, multiplied in float32 at least."""
    kind = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    return (x.to(kind) * y.to(kind)).sum(dtype=torch.float64)
