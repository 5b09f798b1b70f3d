"""What merged networks and their parents score, with classifiers shared or kept apart."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .data import distinct
from .gathered import Gathered

if TYPE_CHECKING:
    from torch import Tensor, nn

    from regraft.symmetry.merge.connectivity import Curve, Measured

State = dict[str, "Tensor"]


class Bench:
    """Measures networks on the test images of every data set.

    With separate heads a model is measured on the data set of each model with that model's
    classifier, its rows alone, and its order of the classes.

    Args:
        given: The models and data.
        limit: Images of each data set, None for all.
        separate: Whether the classifiers are kept apart.
        seed: Seed of the choice of images.
    """

    def __init__(self, given: Gathered, *, limit: int | None, separate: bool, seed: int) -> None:
        from regraft.symmetry.merge.connectivity import Kept

        self.given = given
        self.separate = separate
        sets = given.apart if separate else given.data
        made = {
            data.form: Kept(data.batches(data.test, given.device, limit=limit, seed=seed))
            for data in distinct(sets, lambda data: data.form)
        }
        self.sources = [made[data.form] for data in sets] if separate else list(made.values())

    def score(
        self, state: State, frame: list[State], *, known: Sequence[int] | None = None
    ) -> Measured:
        """Return the scores of a network.

        Args:
            state: The network.
            frame: The models whose classifiers are used, where they are kept apart.
            known: Rows of a shared classifier that may be chosen; the loss on images of another
                class is infinite. None for all.
        """
        from regraft.symmetry.merge.connectivity import measure

        model = self.given.model
        if not self.separate:
            model.load_state_dict(state)
            with _only(model, known):
                return measure(model, self.sources)
        parts = []
        for i, own in enumerate(frame):
            model.load_state_dict(self._with_head(state, own))
            with _only(model, range(self.given.counts[i])):
                parts.append(measure(model, [self.sources[i]]))
        return _joined(parts)

    def curve(self, a: State, b: State, frame: list[State], points: int, **repair: Any) -> Curve:
        """Return the scores along the line between two networks."""
        from regraft.symmetry.merge.connectivity import Curve, interpolation

        model = self.given.model
        if not self.separate:
            return interpolation(model, a, b, self.sources, points=points, **repair)
        curves = []
        for i, own in enumerate(frame):
            ends = self._with_head(a, own), self._with_head(b, own)
            with _only(model, range(self.given.counts[i])):
                found = interpolation(model, *ends, [self.sources[i]], points=points, **repair)
            curves.append(found)
        scores = [_joined(list(parts)) for parts in zip(*(c.scores for c in curves), strict=True)]
        return Curve(at=curves[0].at, scores=tuple(scores))

    def ensemble(self, states: list[State]) -> Measured | None:
        """Return the scores of the mean of the logits, None where classifiers are kept apart.

        With a classifier over a union of classes it is, for each class, the mean of the logits of the
        models that know it, each with its own row.
        """
        from regraft.symmetry.merge.connectivity import measure
        from regraft.symmetry.merge.heads import Ensemble

        if self.separate:
            return None
        both = Ensemble.of(self.given.model, states, known=self.given.known)
        return measure(both, self.sources)

    def _with_head(self, state: State, own: State) -> State:
        names = self.given.head.names if self.given.head else ()
        return {k: own[k] if k in names else v for k, v in state.items()}


def told(found: Measured) -> dict[str, Any]:
    """Return the JSON form of scores; None stands for an infinite loss."""
    scores = found.to_dict()
    scores["losses"] = [None if math.isinf(loss) else loss for loss in found.losses]
    scores["loss"] = None if math.isinf(found.loss) else found.loss
    return scores


@contextlib.contextmanager
def _only(model: nn.Module, rows: Sequence[int] | None) -> Iterator[None]:
    """Give the classes of all other rows probability 0 for a while, in copies of the model as well."""
    import torch

    if rows is None:
        yield
        return

    def mask(_: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        others = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        others[list(rows)] = False
        return logits.masked_fill(others, -math.inf)

    handle = model.register_forward_hook(mask)
    try:
        yield
    finally:
        handle.remove()


def _joined(parts: list[Measured]) -> Measured:
    from regraft.symmetry.merge.connectivity import Measured

    losses = tuple(loss for part in parts for loss in part.losses)
    accuracies = tuple(accuracy for part in parts for accuracy in part.accuracies)
    return Measured(
        loss=sum(losses) / len(losses),
        accuracy=sum(accuracies) / len(accuracies),
        losses=losses,
        accuracies=accuracies,
    )
