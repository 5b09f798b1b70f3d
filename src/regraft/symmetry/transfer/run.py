"""A transfer step by step: pairs of gradients, one matching after another, the displaced target."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.models.copying import copy_module
from regraft.symmetry.merge.repair import Batches, reset_batch_norm_
from regraft.symmetry.spec.spec import PermutationSpec

from .displaced import displaced
from .gradient_pairs import GradientPairs, Solver
from .gradients import Gradients
from .trajectory import State, Trajectory, wide
from .transferred import Costs, Transferred


class TransferRun:
    """One transfer while it goes on; arguments as those of `regraft.symmetry.transfer`.

    The target is copied, and what is yielded shares no memory with it: a caller may load every step
    into the very network whose weights were given.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        target: State,
        spec: PermutationSpec,
        data: Gradients | None,
        *,
        start: dict[str, Tensor],
        begun: bool,
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
        self.target = {
            k: v.detach().to(self.device or v.device, copy=True) for k, v in target.items()
        }
        self.start = {k: p.clone() for k, p in start.items()}
        self.begun, self.now = begun, dict(self.start)
        self.solver, self.warm_start, self.store = solver, warm_start, store
        self.warm_sweeps = min(warm_sweeps, solver.max_sweeps)
        self.redraw = redraw or (data is not None and not data.repeatable)
        self.scale, self.statistics = scale, statistics
        self.network = None if data is None or statistics is None else copy_module(data.model)
        self.seconds = {"gradients": 0.0, "total": 0.0}
        self.solved = {"contraction": 0.0, "assignment": 0.0}
        self.count = self.draws = 0
        self.kept: dict[tuple[str, int], dict[str, Tensor]] = {}

    def by_gradients(self, *, all_pairs: bool) -> Iterator[Transferred]:
        """Match gradients: GMT with all pairs anew, FGMT with the newest alone."""
        pairs = self._pairs()
        stale = False
        for s in range(1, len(self.trajectory.steps)):
            began = clock(self.device)
            # While the permutation stays and batches repeat, all pairs are what they were.
            if all_pairs and s > 1 and (stale or self.redraw):
                self._retire(pairs)
                pairs = self._pairs()
            for t in range(pairs.count, s):
                a, b = self._gradients(t, pairs.compared, keep=all_pairs)
                step = self.trajectory.steps[t]
                pairs.add(a, b, (_named("target", step), _named("source", step)))
            self._refuse_dead(pairs)
            before = self.now
            cold = s == 1 or not self.warm_start
            last = s == len(self.trajectory.steps) - 1
            self.now = dict(
                pairs.solve(
                    self.start if cold else None,
                    grow=cold and not self.begun,
                    seed=s - 1,
                    sweeps=None if cold or last else self.warm_sweeps,
                )
            )
            stale = any(not torch.equal(p, before[k]) for k, p in self.now.items())
            yield self._transferred(s, began, pairs)

    def by_one(self, by: str, trained: State | None) -> Iterator[Transferred]:
        """Use one permutation for all steps."""
        pairs = None
        began = clock(self.device)
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
            self.now = dict(pairs.solve(grow=not self.begun))
        else:
            self.now = dict(self.spec.identity())
        for s in range(1, len(self.trajectory.steps)):
            yield self._transferred(s, began, pairs)
            began = clock(self.device)

    def _pairs(self) -> GradientPairs:
        start = self.now if self.warm_start else self.start
        return GradientPairs(self.spec, start, self.solver, store=self.store)

    def _retire(self, pairs: GradientPairs) -> None:
        self.solved["contraction"] += pairs.contraction
        self.solved["assignment"] += pairs.assignment

    def _gradients(
        self, t: int, names: Sequence[str], *, keep: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the gradients of the target and of the source at steps[t], on the same batches."""
        if self.data is None:
            raise InputError("there is no data to take gradients of")
        began = clock(self.device)
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
        gradients = (
            self.data.at(list(wanted.values()), [_named(who, step) for who in wanted], draw)
            if wanted
            else []
        )
        self.draws += 1
        self.count += len(gradients)
        keep = keep and not self.redraw
        if keep:  # rounded before the first use already, so that all uses are of the same numbers
            gradients = [
                {k: v.to(self.store or v.dtype) for k, v in g.items() if k in names}
                for g in gradients
            ]
        got = dict(zip(wanted, gradients, strict=True))
        mine = got["target"] if mine is None else mine
        theirs = got["source"] if theirs is None else theirs
        if keep:
            self.kept["source", t] = theirs
            if t == 0:
                self.kept["target", t] = mine
        self.seconds["gradients"] += clock(self.device) - began
        return mine, theirs

    def _weights(self, i: int) -> dict[str, Tensor]:
        """Return θ₂ at steps[i] under the present permutation."""
        return displaced(
            self.trajectory, i, self.target, self.spec, self.now, scale=self.scale, to=self.device
        )

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
        self.seconds["total"] += clock(self.device) - began
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
            permutation={k: p.clone() for k, p in self.now.items()},
            objective=None if pairs is None else pairs.value,
            cosine=None if pairs is None else pairs.cosine(pairs.value),
            cosine_before=None if pairs is None else pairs.cosine(pairs.identity),
            sweeps=0 if pairs is None else pairs.sweeps,
            dead=() if pairs is None else pairs.dead,
            costs=costs,
        )


def _named(who: str, step: int) -> str:
    return f"the {who} at step {step}"


def clock(device: torch.device | None) -> float:
    """Return the time in seconds, once the device has done what it was given."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
