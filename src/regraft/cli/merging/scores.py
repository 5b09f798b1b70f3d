"""What merged networks and their parents score, with classifiers shared or kept apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .gathered import Gathered

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.protocols import BatchSource
    from regraft.symmetry.connectivity import Curve, Measured

State = dict[str, "Tensor"]


class Bench:
    """Measures networks on the test images of every data set.

    With separate heads a model is measured on each data set with the classifier of the model that
    belongs to it.

    Args:
        given: The models and data.
        limit: Images of each data set, None for all.
        separate: Whether the classifiers are kept apart.
        seed: Seed of the choice of images.
    """

    def __init__(self, given: Gathered, *, limit: int | None, separate: bool, seed: int) -> None:
        from regraft.symmetry.connectivity import Kept

        self.given = given
        self.separate = separate
        made: dict[int, BatchSource] = {}
        for data in given.data:
            batches = data.batches(data.test, given.device, limit=limit, seed=seed)
            made.setdefault(id(data.splits), Kept(batches))
        if separate:
            per_model = given.data if len(given.data) > 1 else given.data * given.models
            self.sources = [made[id(data.splits)] for data in per_model]
        else:
            self.sources = list(made.values())

    def score(self, state: State, frame: list[State]) -> Measured:
        """Return the scores of a network; `frame` holds the models whose classifiers are used."""
        from regraft.symmetry.connectivity import measure

        model = self.given.model
        if not self.separate:
            model.load_state_dict(state)
            return measure(model, self.sources)
        parts = []
        for source, own in zip(self.sources, frame, strict=True):
            model.load_state_dict(self._with_head(state, own))
            parts.append(measure(model, [source]))
        return _joined(parts)

    def curve(self, a: State, b: State, frame: list[State], points: int, **repair: Any) -> Curve:
        """Return the scores along the line between two networks."""
        from regraft.symmetry.connectivity import Curve, interpolation

        model = self.given.model
        if not self.separate:
            return interpolation(model, a, b, self.sources, points=points, **repair)
        curves = [
            interpolation(
                model,
                self._with_head(a, own),
                self._with_head(b, own),
                [source],
                points=points,
                **repair,
            )
            for source, own in zip(self.sources, frame, strict=True)
        ]
        scores = [_joined(list(parts)) for parts in zip(*(c.scores for c in curves), strict=True)]
        return Curve(at=curves[0].at, scores=tuple(scores))

    def ensemble(self, states: list[State]) -> Measured | None:
        """Return the scores of the mean of the logits, None where classifiers are kept apart."""
        from regraft.symmetry.connectivity import measure
        from regraft.symmetry.heads import Ensemble

        if self.separate:
            return None
        return measure(Ensemble.of(self.given.model, states), self.sources)

    def _with_head(self, state: State, own: State) -> State:
        names = self.given.head.names if self.given.head else ()
        return {k: own[k] if k in names else v for k, v in state.items()}


def _joined(parts: list[Measured]) -> Measured:
    from regraft.symmetry.connectivity import Measured

    losses = tuple(loss for part in parts for loss in part.losses)
    accuracies = tuple(accuracy for part in parts for accuracy in part.accuracies)
    return Measured(
        loss=sum(losses) / len(losses),
        accuracy=sum(accuracies) / len(accuracies),
        losses=losses,
        accuracies=accuracies,
    )
