"""Coordinate descent over blocks of groups, with exact assignment in each.

One sweep visits the blocks in a random order and solves each against what the others are now. A
block is solved again only if something that it depends on has changed since; blocks that share no
tensor are solved at the same time, which gives exactly what the order alone would give, whatever
the number of workers.

The objective rises with every accepted step: a solution is taken only where it is better than the
present one by more than rounding, so that ties cannot make the descent run in circles. It ends at
a local optimum; for one hidden layer that is the global one.

References:
    Ainsworth et al. 2023, Git Re-Basin (arXiv 2209.04836), section 3.2.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import torch
from torch import Tensor

from regraft import streams
from regraft.symmetry.spec.permutation import Permutation, compose

from .blocks import Block
from .contraction import Gains, arrangement
from .nested import solve_nested, total_gain, unit_maps
from .objective import MatchingObjective
from .pairs import Pairs

CACHED_BYTES = 2**31
"""Gains kept between visits, in all; those of further blocks are computed anew at every visit."""


@dataclass
class Seconds:
    """Where the time went: seconds of all workers, and of the whole by the clock."""

    contraction: float = 0.0
    assignment: float = 0.0
    total: float = 0.0


@dataclass
class Descent:
    """A run of coordinate descent over the blocks of `pairs`.

    Attributes:
        pairs: What is compared.
        now: The permutation of all groups; replaced, never changed in place.
        objective: Σ <A, π(B)> at the start, after `grow` if that was called, and after every sweep;
            float64.
        gained: Root group -> what its solutions in sweeps have added to the objective.
        visits: How many blocks were solved.
        sweeps: How many sweeps were made.
        settled: Whether the descent ended by itself.
    """

    pairs: Pairs
    now: dict[str, Tensor]
    seed: int = 0
    tolerance: float = 1e-7
    workers: int = 1
    solver: str = "auto"
    progress: Callable[[int, float], None] | None = None
    objective: list[float] = field(default_factory=list)
    gained: dict[str, float] = field(default_factory=dict)
    visits: int = 0
    sweeps: int = 0
    settled: bool = False
    seconds: Seconds = field(default_factory=Seconds)

    def __post_init__(self) -> None:
        self.blocks = self.pairs.blocks
        self._gains = [Gains(block, self.pairs) for block in self.blocks]
        self._keep = _affordable(self.blocks)
        self._measure = MatchingObjective(self.pairs)
        self._changes = dict.fromkeys(self.now, 0)
        self._solved: list[dict[str, int] | None] = [None] * len(self.blocks)
        self._lock = threading.Lock()
        self.began: list[float] = []
        self._near = _neighbours(self.blocks)
        self.gained = {block.root: 0.0 for block in self.blocks}

    def run(self, max_sweeps: int, *, measure: bool = True) -> None:
        """Sweep until no block changes, the objective has stopped rising, or `max_sweeps`.

        Args:
            max_sweeps: Sweeps at most.
            measure: Whether the objective itself is wanted, or only what is gained on the way.

        Raises:
            InputError: A gain is not finite.
        """
        start = time.perf_counter()
        with torch.no_grad():
            value = self._measure(self.now) if measure else 0.0
            rises = [0.0]
            for _ in range(max_sweeps):
                if not self._any_dirty():
                    break
                before = math.fsum(self.gained.values())
                order = streams.permutation(
                    self.seed, "symmetry.match", self.sweeps, len(self.blocks)
                ).tolist()
                self._sweep(order)
                self.sweeps += 1
                rises.append(math.fsum(self.gained.values()) - before)
                now = value + math.fsum(rises)
                if self.progress is not None:
                    self.progress(self.sweeps, now)
                if rises[-1] <= self.tolerance * abs(now):
                    self.settled = True
                    break
            self.settled |= not self._any_dirty()
            # Both ends are measured; in between it is what the solutions gained, from the end.
            last = self._measure(self.now) if measure else value + math.fsum(rises)
            later = [math.fsum(rises[i + 1 :]) for i in range(len(rises))]
            self.objective = [*self.began, value, *(last - rest for rest in later[1:])]
        self.seconds.total += time.perf_counter() - start

    def grow(self) -> None:
        """Find a start: place block after block, each by what is known of those placed before.

        The identity is no better a guess than any other permutation, and what tensors say about a
        group whose neighbours lie anyhow is noise. So the first block is the one that constant
        terms (inputs, outputs, norms) tell most about, and each further one is that with the
        largest share of its entries in tensors whose other groups have their place. Kept only if
        the objective rises.
        """
        began, start = self.now, time.perf_counter()
        value = self._measure(began)
        placed: frozenset[str] = frozenset()
        left = list(range(len(self.blocks)))
        while left:
            shares = {i: self._known_share(i, placed) for i in left}
            i = max(left, key=lambda i: shares[i])
            left.remove(i)
            block = self.blocks[i]
            if shares[i]:
                self._place(i, placed)
            placed |= frozenset(block.free)
        self.began.append(value)
        if not self._better(value, self._measure(self.now)):
            self.now = began
            self._solved = [None] * len(self.blocks)
        self.seconds.total += time.perf_counter() - start

    def _known_share(self, i: int, placed: frozenset[str]) -> float:
        block, known, total = self.blocks[i], 0, 0
        for term in block.terms:
            size = math.prod(self.pairs.spec.shapes[term.tensor])
            total += size
            known += size if term.moving <= placed else 0
        return known / max(total, 1)

    @torch.no_grad()
    def _place(self, i: int, known: frozenset[str]) -> None:
        block = self.blocks[i]
        start = time.perf_counter()
        kept = arrangement(block, self.now)
        gains = self._gains[i].update(self.now, kept, known=known)
        middle = time.perf_counter()
        solution = solve_nested(
            block, {n: m.cpu() for n, m in gains.items()}, solver=self.solver, threads=self.workers
        )
        self.seconds.contraction += middle - start
        self.seconds.assignment += time.perf_counter() - middle
        self.visits += 1
        self._accept(block, _whole(block, solution, kept))
        if self._gains[i].complete and not block.quadratic:
            self._solved[i] = {name: self._changes[name] for name in block.reads}
        if not self._keep[i]:
            self._gains[i].forget()

    def _sweep(self, order: list[int]) -> None:
        if self.workers <= 1 or len(order) == 1:
            for i in order:
                self._visit(i)
            return
        place = {block: at for at, block in enumerate(order)}
        waiting = {i: {j for j in self._near[i] if place[j] < place[i]} for i in order}
        running: dict[Future[None], int] = {}
        with ThreadPoolExecutor(self.workers) as pool:
            while waiting or running:
                for i in [i for i in order if i in waiting and not waiting[i]]:
                    del waiting[i]
                    running[pool.submit(self._visit, i)] = i
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    i = running.pop(future)
                    future.result()
                    for before in waiting.values():
                        before.discard(i)

    def _any_dirty(self) -> bool:
        return any(self._dirty(i) for i in range(len(self.blocks)))

    def _dirty(self, i: int) -> bool:
        known = self._solved[i]
        return known is None or any(self._changes[name] != at for name, at in known.items())

    @torch.no_grad()  # for each thread on its own
    def _visit(self, i: int) -> None:
        if not self._dirty(i):
            return
        block = self.blocks[i]
        read = {name: self._changes[name] for name in block.reads}
        now = dict(self.now)
        start = time.perf_counter()
        kept = arrangement(block, now)
        gains = self._gains[i].update(now, kept)
        gains = {name: matrix.cpu() for name, matrix in gains.items()}
        middle = time.perf_counter()
        if block.quadratic:
            solution, rise = self._solve_quadratic(block, gains, now, kept)
        else:
            solution, rise = self._solve(block, gains, now)
        end = time.perf_counter()
        if not self._keep[i]:
            self._gains[i].forget()
        with self._lock:
            self.visits += 1
            self.seconds.contraction += middle - start
            self.seconds.assignment += end - middle
            if solution is not None:
                self._accept(block, _whole(block, solution, kept))
                self.gained[block.root] += rise
            if not block.quadratic:  # what went along with its units asks for no second visit
                read = {name: self._changes[name] for name in block.reads}
            self._solved[i] = read

    def _solve(
        self, block: Block, gains: Mapping[str, Tensor], now: Permutation
    ) -> tuple[dict[str, Tensor] | None, float]:
        solution = solve_nested(block, gains, solver=self.solver, threads=self.workers)
        before = total_gain(block, gains, now)
        after = total_gain(block, gains, solution)
        return (solution, after - before) if self._better(before, after) else (None, 0.0)

    def _solve_quadratic(
        self, block: Block, gains: Mapping[str, Tensor], now: Permutation, kept: Permutation
    ) -> tuple[dict[str, Tensor] | None, float]:
        """Solve a block whose gains depend on its own permutation.

        The assignment maximises a linearisation, which may lower the objective itself. Adding
        λ |π|², a constant over permutations, makes the objective convex for λ large enough; the
        linearisation is then a lower bound and its maximum no worse than where it stands. λ is
        doubled from 0 until the objective itself rises, or nothing moves.
        """
        before = self._measure.of(block, now)
        here = unit_maps(block, now)
        bonus = 0.0
        scale = max(float(matrix.abs().mean()) for matrix in gains.values())
        for _ in range(40):
            lifted = {name: _lifted(matrix, here[name], bonus) for name, matrix in gains.items()}
            solution = solve_nested(block, lifted, solver=self.solver, threads=self.workers)
            if all(torch.equal(solution[name], now[name]) for name in block.free):
                break
            after = self._measure.of(block, {**now, **_whole(block, solution, kept)})
            if self._better(before, after):
                return solution, after - before
            bonus = 2.0 * bonus if bonus else scale
        return None, 0.0

    def _better(self, before: float, after: float) -> bool:
        return after - before > self.tolerance * max(abs(before), abs(after))

    def _accept(self, block: Block, solution: Permutation) -> None:
        changed = {n: p for n, p in solution.items() if not torch.equal(p, self.now[n])}
        self.now = {**self.now, **changed}
        for name in changed:
            self._changes[name] += 1


def _lifted(matrix: Tensor, units: Tensor, bonus: float) -> Tensor:
    if not bonus:
        return matrix
    lifted = matrix.clone()
    lifted[torch.arange(len(units)), units] += bonus
    return lifted


def _whole(block: Block, solution: Permutation, kept: Permutation) -> dict[str, Tensor]:
    """Return the permutation of the whole tree: the groups that follow go with their units."""
    if not block.fixed:
        return dict(solution)
    return dict(compose(block.tree, kept, solution))


def _affordable(blocks: list[Block]) -> list[bool]:
    left, keep = CACHED_BYTES, [False] * len(blocks)
    size = [sum((g.copies * g.size) ** 2 * 4 for g in b.tree if g.name in b.free) for b in blocks]
    for i in sorted(range(len(blocks)), key=lambda i: size[i]):
        if size[i] <= left:
            left -= size[i]
            keep[i] = True
    return keep


def _neighbours(blocks: list[Block]) -> list[set[int]]:
    """Return for each block those that it must not be solved together with."""
    writes = [frozenset(b.tree.groups) for b in blocks]
    writers: dict[str, set[int]] = {}
    for i, names in enumerate(writes):
        for name in names:
            writers.setdefault(name, set()).add(i)
    near: list[set[int]] = [set() for _ in blocks]
    for i, block in enumerate(blocks):
        for name in block.reads | writes[i]:
            for j in writers.get(name, ()):
                if j != i:
                    near[i].add(j)
                    near[j].add(i)
    return near
