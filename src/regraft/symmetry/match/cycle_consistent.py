"""Cycle-consistent matching of three and more networks, by Frank-Wolfe on all of them at once.

The permutations into the common frame are relaxed to convex combinations of them. Each step goes
towards the permutations that maximise the linearised agreement, as far as an exact line search says;
the agreement is a polynomial of the step, so that a few evaluations tell it wholly. At the end each
relaxed permutation is replaced by the one nearest to it, and `align_many` goes on from there.

Nested groups are relaxed as one: the variables of a group within units are a matrix over all units
of all copies, and the linear problem of a whole tree of groups is the exact nested assignment. Where
two groups within the same units meet in a tensor only one of them can be in that tree; the other
keeps the arrangement it starts with, and moves in the alignment afterwards.

References:
    Crisostomi et al. 2024, C²M³ (arXiv 2405.17897), section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.symmetry.spec.permutation import Permutation, compose
from regraft.symmetry.spec.spec import PermutationSpec

from .many import ManyMatch, State, _check, _compared, _moved, agreement, align_many, frames_of
from .solver.blocks import Block
from .solver.nested import solve_nested, unit_maps
from .solver.pairs import Pairs
from .solver.rows import rows

Relaxed = dict[str, Tensor]
"""Group -> doubly stochastic matrix over its units, [units, units]."""


def cycle_consistent(
    spec: PermutationSpec,
    states: Sequence[State],
    *,
    init: Sequence[Permutation] | None = None,
    reference: int | None = 0,
    seed: int = 0,
    max_iterations: int = 200,
    tolerance: float = 1e-6,
    patience: int = 5,
    polish: bool = True,
    progress: Callable[[int, float], None] | None = None,
    **options: Any,
) -> ManyMatch:
    """Match all networks at once, so that permutations round any cycle cancel.

    Args:
        spec: Groups of the architecture.
        states: State dicts, two or more.
        init: Permutations to start from; by default each network is first matched to the first.
        reference: Network whose own frame is the common one; None leaves it as it comes.
        seed: Seed of the polishing.
        max_iterations: Frank-Wolfe steps at most.
        tolerance: Share of the agreement that a step must gain to count as progress.
        patience: Steps without progress before it ends.
        polish: Whether `align_many` goes on from the result; it can only raise the agreement.
        progress: Called as `progress(iteration, agreement of the relaxed networks)`.
        **options: As for `align_many`.

    Raises:
        InputError: Fewer than two networks, of other architectures or not finite, or a wrong value.
    """
    _check(spec, states, reference, max_iterations)
    begin = frames_of(spec, states, init, seed=seed, **options)
    compared = _compared(options)
    relaxation = _Relaxation(spec, states, begin, **compared)
    rounded, iterations, converged = relaxation.run(max_iterations, tolerance, patience, progress)
    values = [
        agreement(spec, [_moved(spec, s, p) for s, p in zip(states, ps, strict=True)], **compared)
        for ps in (begin, rounded)
    ]
    if values[1] < values[0]:
        rounded, values[1] = begin, values[0]
    if not polish:
        options = {**options, "max_sweeps": 0}
    done = align_many(
        spec, states, init=rounded, reference=reference, seed=seed,
        max_rounds=100 if polish else 1, **options,
    )  # fmt: skip
    objective = [values[0], *done.objective]
    if init is None:
        objective.insert(0, agreement(spec, states, **compared))
    return ManyMatch(done.permutations, objective, iterations, converged and done.converged)


class _Relaxation:
    def __init__(
        self,
        spec: PermutationSpec,
        states: Sequence[State],
        begin: Sequence[Permutation],
        **compared: Any,
    ) -> None:
        self.begin = begin
        pairs = Pairs(spec, **compared)
        self.pairs = pairs
        roots: set[str] = set()
        self.blocks: list[Block] = []
        for block in pairs.blocks:
            if block.root not in roots:  # the first of each tree; see the module's docstring
                roots.add(block.root)
                self.blocks.append(block)
        names = [n for n in pairs.names if all(s[n].is_floating_point() for s in states)]
        double = any(s[n].dtype == torch.float64 for s in states for n in names)
        self.dtype = torch.float64 if double else torch.float32
        if not names:
            raise InputError("exclude: no tensor is left to compare")
        device = states[0][names[0]].device
        self.tensors: dict[str, list[Tensor]] = {}
        self.cells: dict[str, list[tuple[str, Tensor]]] = {}
        for name in names:
            self.tensors[name] = [
                spec.apply_to(name, s[name].detach(), p).to(device, self.dtype).contiguous()
                for s, p in zip(states, begin, strict=True)
            ]
            places = torch.arange(self.tensors[name][0].numel()).reshape(spec.shapes[name])
            self.cells[name] = [
                (t.group, rows(places, t, {}).to(device))
                for b in self.blocks
                for t in b.terms
                if t.tensor == name
            ]
        self.units = {
            n: b.tree.groups[n].copies * b.tree.groups[n].size for b in self.blocks for n in b.free
        }
        self.device, self.count = device, len(states)
        # An element is multiplied once by every matrix that lies over it, in both networks of a pair.
        self.degree = 2 * max(
            int(torch.cat([cell.flatten() for _, cell in cells]).bincount().max())
            for cells in self.cells.values()
        )

    def run(
        self,
        max_iterations: int,
        tolerance: float,
        patience: int,
        progress: Callable[[int, float], None] | None,
    ) -> tuple[list[Permutation], int, bool]:
        """Return the permutations nearest to where Frank-Wolfe ends."""
        if patience < 1:
            raise InputError(f"patience={patience}: expected at least 1")
        here = [
            {n: torch.eye(u, dtype=self.dtype, device=self.device) for n, u in self.units.items()}
            for _ in range(self.count)
        ]
        value, idle, iteration = self.value(here), 0, 0
        while iteration < max_iterations and idle < patience:
            there = [self._vertex(g) for g in self.gradient(here)]
            step, best = self._line_search(here, there)
            if step == 0.0:
                break
            here = [_mix(x, y, step) for x, y in zip(here, there, strict=True)]
            idle = idle + 1 if best - value <= tolerance * max(abs(best), abs(value)) else 0
            value = best
            iteration += 1
            if progress is not None:
                progress(iteration, value)
        permutations: list[Permutation] = []
        for begin, relaxed in zip(self.begin, here, strict=True):
            nearest: dict[str, Tensor] = {}
            trees: dict[str, Any] = {}
            for block in self.blocks:
                nearest |= solve_nested(block, relaxed)
                trees |= dict(block.tree.groups)
            whole = PermutationSpec(trees, {})
            permutations.append({**begin, **compose(whole, begin, nearest)})
        return permutations, iteration, iteration < max_iterations

    def value(self, relaxed: Sequence[Relaxed]) -> float:
        """Return the agreement of all pairs of relaxed networks."""
        with torch.no_grad():
            return sum(float(self._agreement(name, relaxed)) for name in self.tensors)

    def gradient(self, relaxed: Sequence[Relaxed]) -> list[Relaxed]:
        """Return the derivative of the agreement by every matrix."""
        with torch.enable_grad():
            leaves = [{n: x.detach().requires_grad_() for n, x in r.items()} for r in relaxed]
            for name in self.tensors:  # one by one, so that one graph at a time is held
                self._agreement(name, leaves).backward()
        return [
            {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in r.items()}
            for r in leaves
        ]

    def _agreement(self, name: str, relaxed: Sequence[Relaxed]) -> Tensor:
        total, own = None, 0.0
        for tensor, matrices in zip(self.tensors[name], relaxed, strict=True):
            moved = self._moved(name, tensor, matrices)
            own = own + moved.square().sum(dtype=torch.float64)
            total = moved if total is None else total + moved
        together = torch.as_tensor(total).square().sum(dtype=torch.float64)
        return self.pairs.factor(name) * (together - own) / 2

    def _moved(self, name: str, tensor: Tensor, matrices: Mapping[str, Tensor]) -> Tensor:
        flat = tensor.flatten()
        for group, cell in self.cells[name]:
            mixed = matrices[group] @ flat[cell]
            flat = flat.scatter(0, cell.flatten(), mixed.flatten())
        return flat

    def _vertex(self, gradient: Relaxed) -> Relaxed:
        vertex: Relaxed = {}
        for block in self.blocks:
            best = solve_nested(block, {n: gradient[n] for n in block.free})
            for name, units in unit_maps(block, best).items():
                matrix = torch.zeros_like(gradient[name])
                matrix[torch.arange(len(units)), units.to(matrix.device)] = 1.0
                vertex[name] = matrix
        return vertex

    def _line_search(
        self, here: Sequence[Relaxed], there: Sequence[Relaxed]
    ) -> tuple[float, float]:
        """Return the step in [0, 1] with the largest agreement, and that agreement."""
        points = (1 - np.cos(np.linspace(0, np.pi, self.degree + 1))) / 2
        values = [
            self.value([_mix(x, y, t) for x, y in zip(here, there, strict=True)]) for t in points
        ]
        curve = np.polynomial.Polynomial.fit(points, values, self.degree, domain=[0, 1])
        roots = np.asarray(curve.deriv().roots(), dtype=np.complex128)
        real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0) & (roots.real < 1)]
        turns = [float(r) for r in real]
        steps = [0.0, 1.0, *turns]
        heights = [values[0], values[-1], *(float(curve(t)) for t in turns)]
        best = int(np.argmax(heights))
        return float(steps[best]), float(heights[best])


def _mix(x: Relaxed, y: Relaxed, t: float) -> Relaxed:
    return {n: x[n] + float(t) * (y[n] - x[n]) for n in x}
