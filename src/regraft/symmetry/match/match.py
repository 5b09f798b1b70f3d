"""Find the permutation of B that brings it closest to A."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.symmetry.spec.permutation import Permutation, permutation_error
from regraft.symmetry.spec.spec import PermutationSpec

from .solver.pairs import Pairs
from .solver.solve import Descent, Seconds

State: TypeAlias = Mapping[str, Tensor]


@runtime_checkable
class Signal(Protocol):
    """Something other than the tensors themselves that says which units correspond."""

    def pairs(self, spec: PermutationSpec, a: State, b: State) -> Pairs:
        """Return what is compared for two checkpoints."""


@dataclass(frozen=True, eq=False)
class Match:
    """A permutation of B and how it was found.

    Attributes:
        permutation: `spec.apply(b, permutation)` is B aligned to A; int64 on the CPU.
        objective: Σ <A, π(B)> over what was compared: at the start (of a grown one: at the identity
            and then there), and after every sweep.
        sweeps: Number of sweeps.
        visits: Number of solutions of a block of groups.
        seconds: Seconds of contraction and of assignment (of all workers), and by the clock.
        gains: Root group -> what its solutions added to the objective from the start on.
        unmatched: Groups that nothing was known about, left where they were.
        converged: Whether the descent ended by itself rather than at `max_sweeps`.
    """

    permutation: Permutation
    objective: list[float]
    sweeps: int
    visits: int
    seconds: Seconds
    gains: dict[str, float]
    unmatched: tuple[str, ...] = ()
    converged: bool = True

    @property
    def moved(self) -> float:
        """Share of the units that are not where they were in B."""
        moved = sum(int((p != torch.arange(p.shape[-1])).sum()) for p in self.permutation.values())
        return moved / max(sum(p.numel() for p in self.permutation.values()), 1)


def match(
    spec: PermutationSpec,
    a: State | Sequence[State] | Pairs,
    b: State | Sequence[State] | None = None,
    *,
    by: str | Signal = "weights",
    init: Permutation | Literal["identity", "grown"] | None = None,
    seed: int = 0,
    max_sweeps: int = 100,
    tolerance: float = 1e-7,
    workers: int | None = None,
    solver: str = "auto",
    exclude: Sequence[str] = (),
    importance: Mapping[str, float] | None = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Match:
    """Return the permutation π that maximises Σ <A, π(B)>, as far as coordinate descent finds it.

    For weights this is the least ||A - π(B)||², since a permutation keeps norms. Nothing is
    normalised: tensors with large entries weigh more, as in the paper; `importance` changes that.

    Args:
        spec: Groups of the architecture.
        a: The network that stays: a state dict, or one for each of several pairs (gradients along
            a trajectory, say), or `Pairs` that hold both sides.
        b: The network that is permuted, likewise.
        by: "weights" compares the tensors as they are; a `Signal` such as `Activations` compares
            what the networks do. Lists (gradients) and `Pairs` go by "weights".
        init: Permutation to start from; "identity", the cold start of the paper; or "grown", a start
            grown from the inputs and outputs inwards, each group placed by what is known of its
            neighbours, which takes fewer sweeps. Neither always ends higher: by default both are
            tried where that is cheap and the better end is kept, else it is grown.
        seed: Seed of the order in which blocks are visited.
        max_sweeps: Sweeps at most.
        tolerance: A solution must raise the objective by this share to be taken, and a sweep to go on.
        workers: Threads; the result is the same for any number. By default as many as there are
            cores, at most 4.
        solver: Solver of the assignments, see `assign`.
        exclude: Shell patterns of tensors not to compare; running statistics and integer tensors
            are never compared and always follow.
        importance: Pattern -> factor on the inner product of matching tensors.
        dtype: Dtype of the contractions, by default float64 for float64 tensors, else float32.
        progress: Called as `progress(sweep, objective)`.

    Raises:
        InputError: The states are of other architectures or not finite (the tensor is named), the
            lists differ in length, or an argument is out of its range.
        MissingExtraError: A solver was asked for that is not installed.

    References:
        Ainsworth et al. 2023 (arXiv 2209.04836), section 3; Chijiwa 2024 (arXiv 2305.14122),
        section 3.2, for sums over gradients.
    """
    check_solver(max_sweeps, tolerance, workers)
    pairs = _pairs(spec, a, b, by, tuple(exclude), importance, dtype)

    def descent(*, grown: bool) -> Descent:
        run = Descent(
            pairs,
            start(spec, None if isinstance(init, str) else init),
            seed=seed,
            tolerance=tolerance,
            workers=workers or min(os.cpu_count() or 1, 4),
            solver=solver,
            progress=progress,
        )
        if grown and max_sweeps:
            run.grow()
        run.run(max_sweeps)
        return run

    run = descent(grown=init in (None, "grown"))
    if init is None and max_sweeps and _is_cheap(spec):
        other = descent(grown=False)
        run = other if other.objective[-1] > run.objective[-1] else run
    return Match(
        permutation=run.now,
        objective=run.objective,
        sweeps=run.sweeps,
        visits=run.visits,
        seconds=run.seconds,
        gains=run.gained,
        unmatched=_unmatched(pairs),
        converged=run.settled,
    )


_CHEAP = 8e9
"""Sum of the cubed sizes of groups up to which both starts are tried: seconds of assignments."""


def _is_cheap(spec: PermutationSpec) -> bool:
    return sum(group.copies * float(group.size) ** 3 for group in spec) <= _CHEAP


def start(spec: PermutationSpec, init: Permutation | None) -> dict[str, Tensor]:
    """Return a permutation of all groups to start from.

    Raises:
        InputError: `init` is no permutation of the spec.
    """
    now = dict(spec.identity())
    if init is not None:
        error = permutation_error(spec, init)
        if error:
            raise InputError(f"init: {error}")
        now |= {name: p.detach().to("cpu", torch.int64) for name, p in init.items()}
    return now


def check_solver(max_sweeps: int, tolerance: float, workers: int | None) -> None:
    """Refuse settings of a descent out of their ranges, with an InputError."""
    if max_sweeps < 0:
        raise InputError(f"max_sweeps={max_sweeps}: expected at least 0")
    if not (math.isfinite(tolerance) and 0.0 <= tolerance < 1.0):
        raise InputError(f"tolerance={tolerance}: expected a share in [0, 1), e.g. 1e-7")
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers}: expected at least 1")


def _pairs(
    spec: PermutationSpec,
    a: State | Sequence[State] | Pairs,
    b: State | Sequence[State] | None,
    by: str | Signal,
    exclude: tuple[str, ...],
    importance: Mapping[str, float] | None,
    dtype: torch.dtype | None,
) -> Pairs:
    if isinstance(a, Pairs):
        if b is not None or a.spec is not spec:
            raise InputError("a: Pairs hold both sides and their spec; give them alone, with it")
        if not a.count:
            raise InputError("a: the Pairs are empty; add a pair of states first")
        return a
    if b is None:
        raise InputError("b is missing: give the network that is to be permuted")
    if isinstance(by, Signal) and isinstance(a, Mapping) and isinstance(b, Mapping):
        for state, what in ((a, "a"), (b, "b")):
            spec.check_state(state, what)
        return by.pairs(spec, a, b)
    if by != "weights":
        raise InputError(
            f"by={by!r}: expected 'weights', or a signal such as Activations(model, batches) "
            "with one state dict each"
        )
    pairs = Pairs(spec, exclude=exclude, importance=importance, dtype=dtype)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for state, what in ((a, "a"), (b, "b")):
            spec.check_state(state, what)
        pairs.add(a, b)
        return pairs
    if isinstance(a, Mapping) or isinstance(b, Mapping) or len(a) != len(b) or not a:
        raise InputError("a and b: expected two state dicts, or two lists of equally many")
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        pairs.add(x, y, names=(f"a[{i}]", f"b[{i}]"))
    return pairs


def _unmatched(pairs: Pairs) -> tuple[str, ...]:
    known: set[Any] = set(pairs.sums)
    for block in pairs.blocks:
        for term in block.terms:
            if term.tensor in pairs.stacked:
                known.add(term.group)
    # A parent is judged by what is inside its units.
    for group in reversed(list(pairs.spec)):
        if group.name in known and group.parent is not None:
            known.add(group.parent)
    return tuple(g.name for g in pairs.spec if g.name not in known)
