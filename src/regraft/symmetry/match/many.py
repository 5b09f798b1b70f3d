"""More than two networks in one frame.

Every network p gets a permutation P_p into a common frame, and what is maximised is the agreement
of all pairs there, Σ_{p<q} <P_p θ_p, P_q θ_q>. The permutation that takes B to A is then
P_A⁻¹ P_B, and going round a cycle of networks leads back to where it began.

With all others fixed, the best P_p is a weight matching of θ_p to the mean of the others: aligning
each to the running mean of the rest until none changes raises the agreement at every step.

References:
    Ainsworth et al. 2023 (arXiv 2209.04836), appendix A.10, MergeMany.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regraft import streams
from regraft.errors import InputError
from regraft.symmetry.spec.permutation import Permutation, compose, inverse
from regraft.symmetry.spec.spec import PermutationSpec

from .match import match, start
from .solver.pairs import Pairs, refuse_not_finite

State = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class ManyMatch:
    """Permutations of several networks into one frame.

    Attributes:
        permutations: One for each network; `spec.apply(state, permutation)` is in the frame.
        objective: Σ over pairs of <P_p θ_p, P_q θ_q>: as the networks come (where no permutations
            to start from were given), at the start, and after every round.
        rounds: Rounds over all networks.
        converged: Whether it ended by itself.
    """

    permutations: list[Permutation]
    objective: list[float]
    rounds: int
    converged: bool


def between(spec: PermutationSpec, a: Permutation, b: Permutation) -> Permutation:
    """Return the permutation that takes network B to network A, given both into one frame."""
    return compose(spec, b, inverse(spec, a))


def align_many(
    spec: PermutationSpec,
    states: Sequence[State],
    *,
    init: Sequence[Permutation] | None = None,
    reference: int | None = 0,
    seed: int = 0,
    max_rounds: int = 100,
    tolerance: float = 1e-7,
    progress: Callable[[int, float], None] | None = None,
    **options: Any,
) -> ManyMatch:
    """Align each network to the running mean of the others until none changes.

    Args:
        spec: Groups of the architecture.
        states: State dicts, two or more.
        init: Permutations to start from; by default each network is first matched to the first.
        reference: Network that stays where it is: the frame is its own. None leaves the frame as it
            comes, and moves the units as little as may be.
        seed: Seed of the order in which networks and blocks are visited.
        max_rounds: Rounds over all networks at most.
        tolerance: A matching must raise the agreement by this share to be taken.
        progress: Called as `progress(round, objective)`.
        **options: Of every matching: `max_sweeps`, `workers`, `solver`, `exclude`, `importance`,
            `dtype`.

    Raises:
        InputError: Fewer than two networks, of other architectures or not finite, or a wrong value.
    """
    _check(spec, states, reference, max_rounds)
    frames = frames_of(spec, states, init, seed=seed, **options)
    moved = [_moved(spec, s, p) for s, p in zip(states, frames, strict=True)]
    objective = [agreement(spec, moved, **_compared(options))]
    if init is None:
        objective.insert(0, agreement(spec, states, **_compared(options)))
    rounds, changed = 0, True
    while changed and rounds < max_rounds:
        changed = False
        for i in streams.permutation(seed, "symmetry.many", rounds, len(states)).tolist():
            mean = _mean([m for j, m in enumerate(moved) if j != i])
            aligned = match(
                spec, mean, states[i], init=frames[i], seed=seed + rounds, tolerance=tolerance,
                **options,
            )  # fmt: skip
            if any(not torch.equal(aligned.permutation[k], p) for k, p in frames[i].items()):
                frames[i] = dict(aligned.permutation)
                moved[i] = _moved(spec, states[i], frames[i])
                changed = True
        rounds += 1
        objective.append(agreement(spec, moved, **_compared(options)))
        if progress is not None:
            progress(rounds, objective[-1])
    aligned = [dict(p) for p in frames]
    if reference is not None:
        aligned = [dict(between(spec, frames[reference], p)) for p in frames]
    return ManyMatch(list(aligned), objective, rounds, not changed)


def frames_of(
    spec: PermutationSpec,
    states: Sequence[State],
    init: Sequence[Permutation] | None,
    **options: Any,
) -> list[dict[str, Tensor]]:
    """Return where to start: as given, or each network matched to the first.

    Raises:
        InputError: As many permutations as networks are needed.
    """
    if init is None:
        rest = [dict(match(spec, states[0], s, **options).permutation) for s in states[1:]]
        return [start(spec, None), *rest]
    if len(init) != len(states):
        raise InputError(f"init: got {len(init)} permutations for {len(states)} networks")
    return [start(spec, p) for p in init]


def agreement(
    spec: PermutationSpec,
    states: Sequence[State],
    *,
    exclude: Sequence[str] = (),
    importance: Mapping[str, float] | None = None,
) -> float:
    """Return Σ_{p<q} <θ_p, θ_q> over what matching compares, in float64."""
    pairs = Pairs(spec, exclude=exclude, importance=importance)
    total = 0.0
    for name in pairs.names:
        tensors = [s[name].detach() for s in states]
        if not all(t.is_floating_point() for t in tensors):
            continue
        summed = torch.zeros_like(tensors[0], dtype=torch.float64)
        for tensor in tensors:
            summed += tensor.to(summed.device, summed.dtype)
        own = sum(float(t.double().square().sum()) for t in tensors)
        total += pairs.factor(name) * (float(summed.square().sum()) - own) / 2
    return total


def _compared(options: Mapping[str, Any]) -> dict[str, Any]:
    return {k: options[k] for k in ("exclude", "importance") if k in options}


def _moved(spec: PermutationSpec, state: State, permutation: Permutation) -> dict[str, Tensor]:
    return {k: spec.apply_to(k, v, permutation) for k, v in state.items()}


def _mean(states: Sequence[State]) -> dict[str, Tensor]:
    mean = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            mean[name] = first
            continue
        wide = (
            torch.float64 if any(s[name].dtype == torch.float64 for s in states) else torch.float32
        )
        total = first.detach().to(wide, copy=True)
        for state in states[1:]:
            total += state[name].detach().to(total.device, wide)
        mean[name] = total / len(states)
    return mean


def _check(
    spec: PermutationSpec, states: Sequence[State], reference: int | None, max_rounds: int
) -> None:
    if len(states) < 2:
        raise InputError(f"states: got {len(states)}, expected at least two networks")
    for i, state in enumerate(states):
        spec.check_state(state, f"states[{i}]")
        refuse_not_finite(state, f"states[{i}]")
    if reference is not None and not 0 <= reference < len(states):
        raise InputError(f"reference={reference}: expected 0 to {len(states) - 1}, or None")
    if max_rounds < 1:
        raise InputError(f"max_rounds={max_rounds}: expected at least 1")
