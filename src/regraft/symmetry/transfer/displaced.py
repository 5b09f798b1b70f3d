"""The target of a transfer at a point of the source's trajectory."""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.symmetry.match.solver.blocks import NEVER_COMPARED
from regraft.symmetry.spec.permutation import Permutation
from regraft.symmetry.spec.spec import PermutationSpec

from .trajectory import State, Trajectory, add


def displaced(
    trajectory: Trajectory,
    i: int,
    target: State,
    spec: PermutationSpec,
    permutation: Permutation,
    *,
    scale: float = 1.0,
    to: torch.device | None = None,
) -> dict[str, Tensor]:
    """Return θ₂⁰ + scale π(θ₁ᵗ - θ₁⁰), running statistics the permuted source's.

    Args:
        trajectory: The source's.
        i: Which of `trajectory.steps` is t.
        target: State dict θ₂⁰.
        spec: Symmetries of the architecture.
        permutation: π.
        scale: Factor on the displacement.
        to: Device of the result; by default every tensor stays where the target's is.

    Returns:
        A state dict that shares no memory with the target or the source.
    """
    state = {}
    for name, delta in trajectory.displacement(i):
        own = target[name] if to is None else target[name].to(to)
        moved = spec.apply_to(name, delta.to(own.device), permutation)
        state[name] = add(own, moved if scale == 1.0 else moved * scale)
    for name, tensor in trajectory.others(i):
        own = target[name]
        if name.endswith(NEVER_COMPARED):
            moved = spec.apply_to(name, tensor, permutation)
            state[name] = moved.to(to or own.device, own.dtype, copy=True)
        else:
            state[name] = own.to(to or own.device, copy=True)
    return {k: state[k] for k in target}
