"""What a transfer yields: the target at one step, and what it has cost so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from regraft.symmetry.spec.permutation import Permutation


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
        cosine: The same as a cosine: 1 where the permuted source does just what the target does. It is
            what the matching maximised, so that it is well above 0 for noise as well: whether the
            permutation helps is told by `regraft.symmetry.agreement`, on held-out batches.
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
