"""What merged networks and their parents score, with classifiers shared or kept apart."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.symmetry.merge.connectivity import Curve, Kept, Measured, interpolation, measure
from regraft.symmetry.merge.heads import Ensemble

from .data import distinct
from .models import Models

State = dict[str, Tensor]


class Scores:
    """Measures networks on the test images of every data set.

    With separate heads a model is measured on the data set of each model with that model's
    classifier, its rows alone, and its order of the classes.

    Args:
        models: The models and data.
        limit: Images of each data set, None for all.
        separate: Whether the classifiers are kept apart.
        seed: Seed of the choice of images.
        split: `validation`, or what each data set is tested on.
    """

    def __init__(
        self,
        models: Models,
        *,
        limit: int | None,
        seed: int,
        separate: bool = False,
        split: Literal["test", "validation"] = "test",
    ) -> None:
        self.models = models
        self.separate = separate
        sets = models.apart if separate else models.data
        made = {
            data.form: Kept(data.batches(data.part(split), models.device, limit=limit, seed=seed))
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
        model = self.models.model
        if not self.separate:
            model.load_state_dict(state)
            with _only(model, known):
                return measure(model, self.sources)
        parts = []
        for i, own in enumerate(frame):
            model.load_state_dict(self._with_head(state, own))
            with _only(model, range(self.models.counts[i])):
                parts.append(measure(model, [self.sources[i]]))
        return _joined(parts)

    def curve(self, a: State, b: State, frame: list[State], points: int, **repair: Any) -> Curve:
        """Return the scores along the line between two networks."""
        model = self.models.model
        if not self.separate:
            return interpolation(model, a, b, self.sources, points=points, **repair)
        curves = []
        for i, own in enumerate(frame):
            ends = self._with_head(a, own), self._with_head(b, own)
            with _only(model, range(self.models.counts[i])):
                curve = interpolation(model, *ends, [self.sources[i]], points=points, **repair)
            curves.append(curve)
        scores = [_joined(list(parts)) for parts in zip(*(c.scores for c in curves), strict=True)]
        return Curve(at=curves[0].at, scores=tuple(scores))

    def ensemble(self, states: list[State]) -> Measured | None:
        """Return the scores of the mean of the logits, None where classifiers are kept apart.

        With a classifier over a union of classes it is, for each class, the mean of the logits of the
        models that know it, each with its own row.
        """
        if self.separate:
            return None
        both = Ensemble.of(self.models.model, states, known=self.models.known)
        return measure(both, self.sources)

    def _with_head(self, state: State, own: State) -> State:
        names = self.models.head.names if self.models.head else ()
        return {k: own[k] if k in names else v for k, v in state.items()}


def to_json(measured: Measured) -> dict[str, Any]:
    """Return the JSON form of scores; None stands for an infinite loss."""
    scores = measured.to_dict()
    scores["losses"] = [None if math.isinf(loss) else loss for loss in measured.losses]
    scores["loss"] = None if math.isinf(measured.loss) else measured.loss
    return scores


@contextlib.contextmanager
def _only(model: nn.Module, rows: Sequence[int] | None) -> Iterator[None]:
    """Give the classes of all other rows probability 0 for a while, in copies of the model as well."""
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
    losses = tuple(loss for part in parts for loss in part.losses)
    accuracies = tuple(accuracy for part in parts for accuracy in part.accuracies)
    return Measured(
        loss=sum(losses) / len(losses),
        accuracy=sum(accuracies) / len(accuracies),
        losses=losses,
        accuracies=accuracies,
    )
