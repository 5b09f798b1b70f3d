"""Whether a permutation brings two networks closer, on batches that it was not matched on.

A matching maximises the cosine that it ends with, so that it is well above zero for gradients that
have nothing in common, the more so the narrower the layers and the fewer the batches. With pairs of
gradients that were held out there is nothing that could have been fitted:

    cosine = Σ_d <A_d, π(B_d)> / (Σ_d ||A_d||² Σ_d ||B_d||²)^½
    plain  = the same with the identity in the place of π

over the tensors that are matched, where A_d = ∇L_d(θ₂) and B_d = ∇L_d(θ₁) on the batches of the held-out
draw d. Both are near zero for independent gradients (of standard deviation n^-½ for n numbers), the
first is 1 for a permuted copy. It is measured at the initialisations by default, where no permutation
has a part in the networks: at a later step the target already holds the permuted displacement of the
source, and gradients are alike by that alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from regraft.errors import InputError
from regraft.symmetry.match.solver.pairs import Pairs, refuse_not_finite
from regraft.symmetry.spec.permutation import Permutation, permutation_error
from regraft.symmetry.spec.spec import PermutationSpec

from .displaced import displaced
from .gradient_pairs import inner
from .gradients import Gradients
from .trajectory import State, Trajectory

HELD_OUT = 1 << 30
"""Number of the first held-out draw; a transfer counts its own from 0."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How alike the gradients of two networks are on batches that were held out.

    Attributes:
        cosine: Of the target's gradients and the permuted source's.
        plain: Of the target's and the source's as they are.
        count: Number of gradients taken.
    """

    cosine: float
    plain: float
    count: int

    @property
    def gain(self) -> float:
        """Return what the permutation is worth: the first cosine less the second."""
        return self.cosine - self.plain

    def to_dict(self) -> dict[str, float | int]:
        """Return the JSON form."""
        return {"cosine": self.cosine, "plain": self.plain, "gain": self.gain, "count": self.count}


def agreement(
    trajectory: Trajectory,
    target: State,
    spec: PermutationSpec,
    data: Gradients,
    permutation: Permutation,
    *,
    at: int = 0,
    draws: int = 1,
    scale: float = 1.0,
) -> Agreement:
    """Measure how alike two networks' gradients are under a permutation, on held-out batches.

    Args:
        trajectory: The source's.
        target: State dict θ₂⁰, as given to `transfer`.
        spec: Symmetries of the architecture.
        data: What the gradients are of. It may be that of the transfer: draws are others, and the first
            `data.count` batches of each are left out, so that a loader that does not shuffle gives
            others as well (if it has more than those). Images that the transfer has not seen at all are
            better still.
        permutation: π, of the source; e.g. `Transferred.permutation` of the last step.
        at: Which of `trajectory.steps` to measure at; elsewhere than at the start `plain` is that of the
            naive transfer's target.
        draws: Pairs of gradients, each over `data.count` batches.
        scale: Factor on the displacement, as given to `transfer`.

    Raises:
        InputError: States or a permutation that do not fit, no draws, no such step, or what
            `Gradients.check` refuses.
        DivergenceError: A loss is not finite.

    Example:
        >>> *_, last = transfer(line, target_init, spec, data)
        >>> measured = agreement(line, target_init, spec, data, last.permutation)
        >>> measured.gain  # hardly above 0: expect no more than the naive transfer gives
    """
    if draws < 1:
        raise InputError(f"draws={draws}: expected at least 1 pair of gradients")
    count = len(trajectory.steps)
    if not -count <= at < count:
        raise InputError(
            f"at={at}: the trajectory has {count} states, the initial one included; expected 0 to "
            f"{count - 1}"
        )
    spec.check_state(trajectory.initial, "the source")
    spec.check_state(target, "the target")
    spec.check_state(data.model.state_dict(), "the model")
    if error := permutation_error(spec, permutation):
        raise InputError(error)
    data.check(target, "the target at its start")
    step = trajectory.steps[at]
    states = {"source": trajectory.state(at)}
    for name, one in (("target", permutation), ("naive", spec.identity())):
        if name == "target" or at % count:
            states[name] = displaced(trajectory, at, target, spec, one, scale=scale, to=data.device)
    called = [
        f"the {name if name != 'naive' else 'naive target'} at step {step}" for name in states
    ]
    compared = Pairs(spec).names
    permuted, plain = _Cosine(spec, compared, permutation), _Cosine(spec, compared, {})
    for draw in range(draws):
        gradients_of = data.at(list(states.values()), called, HELD_OUT + draw, skip=data.count)
        got = dict(zip(states, gradients_of, strict=True))
        for gradients, name in zip(gradients_of, called, strict=True):
            refuse_not_finite(gradients, f"the gradient of {name}")
        permuted.add(got["target"], got["source"])
        plain.add(got.get("naive", got["target"]), got["source"])
    return Agreement(cosine=permuted.value, plain=plain.value, count=draws * len(states))


class _Cosine:
    """The cosine of pairs that come one by one, all as one vector."""

    def __init__(
        self, spec: PermutationSpec, names: tuple[str, ...], permutation: Permutation
    ) -> None:
        self.spec, self.names, self.permutation = spec, names, permutation
        self.sums = [0.0, 0.0, 0.0]

    def add(self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
        """Add a pair: that of the network that stays, and that of the one that is permuted."""
        for name in self.names:
            if name in a and name in b:
                x, y = a[name], self.spec.apply_to(name, b[name], self.permutation)
                for i, value in enumerate((inner(x, y), inner(x, x), inner(y, y))):
                    self.sums[i] += float(value)

    @property
    def value(self) -> float:
        """Return the cosine; 0 where one side is zero."""
        product, left, right = self.sums
        return product / math.sqrt(left * right) if min(left, right) > 0 else 0.0
