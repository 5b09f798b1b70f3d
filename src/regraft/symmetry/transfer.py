"""Learning transfer: a training run carried over to another initialisation, without training there.

With θ₁⁰ ... θ₁ᵀ a trajectory of the source and θ₂⁰ an initialisation of the target,

    θ₂ᵗ = θ₂⁰ + π_s (θ₁ᵗ - θ₁⁰)        (one permutation for the whole displacement)
    π_s = argmin Σ_{t=1..s} ||∇L(θ₂ᵗ⁻¹) - π ∇L(θ₁ᵗ⁻¹)||²

GMT takes all s pairs of gradients anew with the targets that π_{s-1} gives; FGMT only the newest one
and keeps the others. Controls: `naive` (π the identity), `oracle` (π from the displacements of a
target that was really trained), `initial_weights` (π from θ₁⁰ and θ₂⁰ alone, without data).

References:
    Chijiwa 2024, Transferring Learning Trajectories of Neural Networks (arXiv 2305.14122),
    algorithms 1 and 2. Rinaldi et al. 2025 (arXiv 2505.22697) for matching initial weights.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from regraft.errors import InputError

from .gradient_pairs import GradientPairs, Solver
from .gradients import Gradients
from .match import _check as check_solver
from .match import start as starting_from
from .permutation import Permutation
from .repair import Batches, reset_batch_norm_
from .solver.blocks import NEVER_COMPARED
from .solver.pairs import refuse_not_finite
from .spec import PermutationSpec
from .trajectory import State, Trajectory, add, wide

Method = Literal["gmt", "fgmt", "naive", "oracle", "initial_weights"]
METHODS: tuple[str, ...] = ("gmt", "fgmt", "naive", "oracle", "initial_weights")


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds since the beginning of the transfer, and gradients taken of either network.

    Attributes:
        gradients: Seconds of the gradients.
        contraction: Seconds of contractions, of all threads.
        assignment: Seconds of assignments, of all threads.
        total: Seconds by the clock, without what the caller did in between.
        count: Number of gradients, each over `Gradients.count` batches.
    """

    gradients: float = 0.0
    contraction: float = 0.0
    assignment: float = 0.0
    total: float = 0.0
    count: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Transferred:
    """The target at one step; unpacks into (step, weights, permutation, objective).

    Attributes:
        step: The source's step.
        weights: State dict θ₂ˢ.
        permutation: π_s, of the source.
        objective: Σ <A, π(B)> over what was matched; None for `naive`.
        cosine: The same as a cosine: 1 where the permuted source does just what the target does.
        cosine_before: The cosine under the identity.
        sweeps: Sweeps of the matching.
        dead: Groups without gradients in one of the networks; they stay in place.
        costs: What it has cost so far.
    """

    step: int
    weights: dict[str, Tensor]
    permutation: Permutation
    objective: float | None = None
    cosine: float | None = None
    cosine_before: float | None = None
    sweeps: int = 0
    dead: tuple[str, ...] = ()
    costs: Costs = field(default_factory=Costs)

    def __iter__(self) -> Iterator[object]:
        yield from (self.step, self.weights, self.permutation, self.objective)


def transfer(
    trajectory: Trajectory,
    target: State,
    spec: PermutationSpec,
    data: Gradients | None = None,
    *,
    by: Method = "fgmt",
    trained: State | Trajectory | None = None,
    init: Permutation | None = None,
    warm_start: bool = True,
    redraw: bool = False,
    scale: float = 1.0,
    statistics: Batches | None = None,
    store: torch.dtype | None = None,
    seed: int = 0,
    max_sweeps: int = 100,
    warm_sweeps: int = 2,
    tolerance: float = 1e-7,
    workers: int | None = None,
    solver: str = "auto",
) -> Iterator[Transferred]:
    """Yield the target at every step of the trajectory after the initial one.

    The input is checked at once; each step is computed when it is asked for. Running statistics are
    the permuted source's, as a displaced variance could be negative: take them anew before the network
    is used, or give `statistics`. Other tensors that are not trained stay the target's.

    Memory: FGMT and GMT keep running sums for tensors of one permuted axis, whatever the number of
    steps, and the gradients of the others (2 for every step; `store` halves them). GMT keeps the
    source's gradients as well unless `redraw`.

    Args:
        trajectory: The source's.
        target: State dict θ₂⁰.
        spec: Symmetries of the architecture, see `regraft.symmetry.trace`.
        data: What the gradients are of; `gmt` and `fgmt` need it.
        by: The method.
        trained: For `oracle`: the target after its own training, or its own trajectory.
        init: Permutation to start from, e.g. that of the initial weights; by default the start is
            grown, see `regraft.symmetry.match.match`.
        warm_start: Start each matching from the permutation before (faster than from `init` every
            time, as the released code does, and no worse).
        redraw: Take new batches whenever a pair is computed. Without it a pair keeps its batches, so
            that GMT computes the source's gradients, and all pairs while π stays, only once.
        scale: Factor on the displacement.
        statistics: Batches to take BatchNorm statistics from, for every network that is yielded.
        store: Dtype of the gradients that are kept, e.g. bfloat16; their own by default.
        seed: Seed of the order in which the matcher visits groups.
        max_sweeps: See `regraft.symmetry.match.match`.
        warm_sweeps: Sweeps at most where a matching starts from the one before; the next goes on where
            it stops. On a perceptron of width 512 all sweeps took 2.6 times as long as 2 and the
            accuracies were alike.
        tolerance: Likewise.
        workers: Likewise.
        solver: Likewise.

    Raises:
        InputError: States of two architectures or not finite, a method without what it needs, data
            that do not fit, a network without gradients.
        DivergenceError: A loss is not finite on the way.

    Example:
        >>> line = Trajectory.linear(source_init, source_trained, steps=10)
        >>> data = Gradients(model, loader)
        >>> for step, weights, permutation, objective in transfer(line, target_init, spec, data):
        ...     model.load_state_dict(weights)
    """
    if by not in METHODS:
        raise InputError(f"by={by!r}: expected one of {', '.join(METHODS)}")
    if by in ("gmt", "fgmt") and data is None:
        raise InputError(
            f"by={by!r} matches gradients: give data=Gradients(model, batches), or take "
            "'initial_weights', which needs none"
        )
    if by == "oracle" and trained is None:
        raise InputError(
            "by='oracle' matches what training really did to the target: give its trained weights, or "
            "take 'fgmt'"
        )
    if statistics is not None and data is None:
        raise InputError("statistics are taken by a model: give data=Gradients(model, batches)")
    check_solver(max_sweeps, tolerance, workers)
    if warm_sweeps < 1:
        raise InputError(f"warm_sweeps={warm_sweeps}: expected at least 1")
    spec.check_state(trajectory.initial, "the source")
    spec.check_state(target, "the target")
    refuse_not_finite(trajectory.initial, "the source")
    refuse_not_finite(target, "the target")
    if isinstance(trained, Trajectory):
        trained = trained.state(-1)
    if trained is not None:
        spec.check_state(trained, "the trained target")
    if data is not None:
        spec.check_state(data.model.state_dict(), "the model")
    if by in ("gmt", "fgmt") and data is not None:
        data.check(target, "the target at its start")
    run = _Run(
        trajectory,
        target,
        spec,
        data,
        start=starting_from(spec, init),
        given=init is not None,
        solver=Solver(
            seed=seed,
            max_sweeps=max_sweeps,
            tolerance=tolerance,
            workers=workers,
            solver=solver,
        ),
        warm_start=warm_start,
        warm_sweeps=warm_sweeps,
        redraw=redraw,
        scale=scale,
        statistics=statistics,
        store=store,
    )
    return (
        run.by_gradients(all_pairs=by == "gmt")
        if by in ("gmt", "fgmt")
        else run.by_one(by, trained)
    )


class _Run:
    """One transfer while it goes on."""

    def __init__(
        self,
        trajectory: Trajectory,
        target: State,
        spec: PermutationSpec,
        data: Gradients | None,
        *,
        start: dict[str, Tensor],
        given: bool,
        solver: Solver,
        warm_start: bool,
        warm_sweeps: int,
        redraw: bool,
        scale: float,
        statistics: Batches | None,
        store: torch.dtype | None,
    ) -> None:
        self.trajectory, self.spec, self.data = trajectory, spec, data
        self.device = None if data is None else data.device
        self.target = {k: v.detach().to(self.device or v.device) for k, v in target.items()}
        self.start, self.given, self.now = start, given, dict(start)
        self.solver, self.warm_start, self.store = solver, warm_start, store
        self.warm_sweeps = min(warm_sweeps, solver.max_sweeps)
        self.redraw = redraw or (data is not None and not data.repeatable)
        self.scale, self.statistics = scale, statistics
        self.network = None if data is None or statistics is None else copy.deepcopy(data.model)
        self.seconds = {"gradients": 0.0, "total": 0.0}
        self.solved = {"contraction": 0.0, "assignment": 0.0}
        self.count = self.draws = 0
        self.kept: dict[tuple[str, int], dict[str, Tensor]] = {}

    def by_gradients(self, *, all_pairs: bool) -> Iterator[Transferred]:
        """Match gradients: GMT with all pairs anew, FGMT with the newest alone."""
        pairs = self._pairs()
        stale = False
        for s in range(1, len(self.trajectory.steps)):
            began = time.perf_counter()
            # While the permutation stays and batches repeat, all pairs are what they were.
            if all_pairs and s > 1 and (stale or self.redraw):
                self._retire(pairs)
                pairs = self._pairs()
            for t in range(pairs.count, s):
                a, b = self._gradients(t, keep=all_pairs)
                step = self.trajectory.steps[t]
                pairs.add(a, b, (_named("target", step), _named("source", step)))
            self._refuse_dead(pairs)
            before = self.now
            cold = s == 1 or not self.warm_start
            self.now = dict(
                pairs.solve(
                    self.start if cold else None,
                    grow=cold and not self.given,
                    seed=s - 1,
                    sweeps=None if cold else self.warm_sweeps,
                )
            )
            stale = any(not torch.equal(p, before[k]) for k, p in self.now.items())
            yield self._transferred(s, began, pairs)

    def by_one(self, by: str, trained: State | None) -> Iterator[Transferred]:
        """Use one permutation for all steps."""
        pairs = None
        began = time.perf_counter()
        if by != "naive":
            pairs = self._pairs()
            names = sorted(self.trajectory.trained)
            if by == "oracle" and trained is not None:
                last = len(self.trajectory.steps) - 1
                b = {k: self._here(v) for k, v in self.trajectory.displacement(last)}
                a = {k: wide(self._here(trained[k])) - wide(self.target[k]) for k in names}
                called = ("the target's displacement", "the source's displacement")
            else:
                a = {k: self.target[k] for k in names}
                b = {k: self._here(self.trajectory.initial[k]) for k in names}
                called = ("the target", "the source")
            pairs.add(a, b, called)
            self.now = dict(pairs.solve(grow=not self.given))
        else:
            self.now = dict(self.spec.identity())
        for s in range(1, len(self.trajectory.steps)):
            yield self._transferred(s, began, pairs)
            began = time.perf_counter()

    def _pairs(self) -> GradientPairs:
        start = self.now if self.warm_start else self.start
        return GradientPairs(self.spec, start, self.solver, store=self.store)

    def _retire(self, pairs: GradientPairs) -> None:
        self.solved["contraction"] += pairs.contraction
        self.solved["assignment"] += pairs.assignment

    def _gradients(self, t: int, *, keep: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the gradients of the target and of the source at steps[t], on the same batches."""
        if self.data is None:
            raise InputError("there is no data to take gradients of")
        began = time.perf_counter()
        step = self.trajectory.steps[t]
        # The target's first point is θ₂⁰ whatever the permutation, and the source's are its own.
        mine, theirs = self.kept.get(("target", t)), self.kept.get(("source", t))
        wanted = {}
        if mine is None:
            wanted["target"] = self._weights(t)
        if theirs is None:
            wanted["source"] = self.trajectory.state(t)
        if self.redraw:
            mine = theirs = None
            wanted = {"target": self._weights(t), "source": self.trajectory.state(t)}
        draw = self.draws if self.redraw else t
        found = (
            self.data.at(list(wanted.values()), [_named(who, step) for who in wanted], draw)
            if wanted
            else []
        )
        self.draws += 1
        self.count += len(found)
        got = dict(zip(wanted, found, strict=True))
        mine, theirs = mine or got["target"], theirs or got["source"]
        if keep and not self.redraw:
            self.kept["source", t] = theirs
            if t == 0:
                self.kept["target", t] = mine
        self.seconds["gradients"] += time.perf_counter() - began
        return mine, theirs

    def _weights(self, i: int) -> dict[str, Tensor]:
        """Return θ₂ at steps[i] under the present permutation."""
        found = {}
        for name, delta in self.trajectory.displacement(i):
            moved = self.spec.apply_to(name, self._here(delta), self.now)
            found[name] = add(self.target[name], moved if self.scale == 1.0 else moved * self.scale)
        for name, tensor in self.trajectory.others(i):
            if name.endswith(NEVER_COMPARED):
                moved = self.spec.apply_to(name, self._here(tensor), self.now)
                found[name] = moved.to(self.target[name].dtype)
            else:
                found[name] = self.target[name]
        return {k: found[k] for k in self.target}

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor if self.device is None else tensor.to(self.device)

    def _refuse_dead(self, pairs: GradientPairs) -> None:
        dead = pairs.dead
        if len(self.spec) and len(dead) == len(self.spec):
            raise InputError(
                f"the gradients of {dead[0]} and of all other groups are zero in one of the networks: a "
                "dead network, whose units cannot be told apart; start from another initialisation or "
                "a lower learning rate"
            )

    def _transferred(self, s: int, began: float, pairs: GradientPairs | None) -> Transferred:
        weights = self._weights(s)
        if self.network is not None and self.statistics is not None:
            self.network.load_state_dict(weights)
            if reset_batch_norm_(self.network, self.statistics):
                weights = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.seconds["total"] += time.perf_counter() - began
        running = (pairs.contraction, pairs.assignment) if pairs is not None else (0.0, 0.0)
        costs = Costs(
            contraction=self.solved["contraction"] + running[0],
            assignment=self.solved["assignment"] + running[1],
            count=self.count,
            **self.seconds,
        )
        return Transferred(
            step=self.trajectory.steps[s],
            weights=weights,
            permutation=dict(self.now),
            objective=None if pairs is None else pairs.value,
            cosine=None if pairs is None else pairs.cosine(pairs.value),
            cosine_before=None if pairs is None else pairs.cosine(pairs.identity),
            sweeps=0 if pairs is None else pairs.sweeps,
            dead=() if pairs is None else pairs.dead,
            costs=costs,
        )


def _named(who: str, step: int) -> str:
    return f"the {who} at step {step}"
