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

from collections.abc import Iterator
from typing import Literal

import torch

from regraft.errors import InputError
from regraft.symmetry.match.match import check_solver
from regraft.symmetry.match.match import start as starting_from
from regraft.symmetry.match.solver.pairs import refuse_not_finite
from regraft.symmetry.merge.repair import Batches
from regraft.symmetry.spec.permutation import Permutation
from regraft.symmetry.spec.spec import PermutationSpec

from .gradient_pairs import Solver
from .gradients import Gradients
from .run import TransferRun
from .trajectory import State, Trajectory
from .transferred import Costs, Transferred

__all__ = ["METHODS", "Costs", "Method", "Transferred", "transfer"]

Method = Literal["gmt", "fgmt", "naive", "oracle", "initial_weights"]
METHODS: tuple[str, ...] = ("gmt", "fgmt", "naive", "oracle", "initial_weights")


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
    steps, and the gradients of the others (2 for every step). GMT keeps the source's gradients of all
    permuted tensors as well, as their products with the target's change with every permutation, unless
    `redraw`. All of these are kept in the dtype `store`, which can halve them.

    What is given is copied and what is yielded is the caller's own: it may be changed, and loaded into
    the network whose weights were given. Only the trajectory is read while the transfer goes on.

    Args:
        trajectory: The source's.
        target: State dict θ₂⁰.
        spec: Symmetries of the architecture, see `regraft.symmetry.trace.trace`.
        data: What the gradients are of; `gmt` and `fgmt` need it.
        by: The method.
        trained: For `oracle`: the target after its own training, or its own trajectory.
        init: Permutation to start from, e.g. that of the initial weights; by default the start is
            grown, see `regraft.symmetry.match.match.match`.
        warm_start: Start each matching from the permutation before (faster than from `init` every
            time, as the released code does, and no worse).
        redraw: Take new batches whenever a pair is computed. Without it a pair keeps its batches, so
            that GMT computes the source's gradients, and all pairs while π stays, only once.
        scale: Factor on the displacement.
        statistics: Batches to take BatchNorm statistics from, for every network that is yielded.
        store: Dtype of all gradients that are kept, e.g. bfloat16; their own by default.
        seed: Seed of the order in which the matcher visits groups.
        max_sweeps: See `regraft.symmetry.match.match.match`.
        warm_sweeps: Sweeps at most where a matching starts from the one before; the next goes on where
            it stops, and the last runs to its end. On a perceptron of width 512 all sweeps took 2.6
            times as long as 2 and the accuracies were alike.
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
        # A copy, as the first step may be asked for when the network has gone on.
        trained = (
            {k: trained[k].detach().clone() for k in trajectory.trained} if by == "oracle" else None
        )
    if data is not None:
        spec.check_state(data.model.state_dict(), "the model")
    if by in ("gmt", "fgmt") and data is not None:
        data.check(target, "the target at its start")
    run = TransferRun(
        trajectory,
        target,
        spec,
        data,
        start=starting_from(spec, init),
        begun=init is not None,
        solver=Solver(
            seed=seed, max_sweeps=max_sweeps, tolerance=tolerance, workers=workers, solver=solver
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
