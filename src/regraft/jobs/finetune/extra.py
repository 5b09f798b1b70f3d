"""Further losses of a fine-tuning: on generated images, on images without labels.

What a user asks for is a frozen dataclass with `term`, among the fields of the job and so part of its
identity; what trains is the object that it returns, new for every training. `--generator` and
`--unlabelled` plug in here.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regraft.data import Splits
from regraft.generators.mgr.memory import ran_out


@dataclass(frozen=True, eq=False)
class TermContext:
    """What a further loss may build on.

    Attributes:
        splits: The target: its images, classes, and the mean and std that pixels are normalised by.
        classifier: Name of the network's classifier.
        batch_size: Images of a step.
        steps: Optimiser steps of the whole training.
        seed: The run's seed; draw from generators of your own that it starts.
        device: Where the network is.
    """

    splits: Splits
    classifier: str
    batch_size: int
    steps: int
    seed: int
    device: torch.device


class ExtraLoss(Protocol):
    """A loss that is added to that of every step; one with `state_dict` has `load_state_dict` too."""

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """Return a scalar, after the step's own forward pass and before its backward pass.

        Args:
            model: The network in the mode of training.
            step: Optimiser steps taken so far.
        """
        ...


class ExtraTerm(Protocol):
    """What makes a further loss: a frozen dataclass of what determines it, JSON in its fields."""

    def term(self, model: nn.Module, context: TermContext) -> ExtraLoss:
        """Return the loss for a network that is about to be trained, with its new classifier."""
        ...


@contextlib.contextmanager
def memory_told(extras: Extras | None) -> Iterator[None]:
    """Where memory runs out inside, raise what a loss on generated images says would fit.

    Raises:
        RegraftError: Memory ran out, and one of the losses has `too_large`.
    """
    try:
        yield
    except Exception as error:
        able = [t for t in (extras.terms if extras else ()) if hasattr(t, "too_large")]
        if not able or not ran_out(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the graph that had no room
        raise able[0].too_large() from None  # pyrefly: ignore


class Extras:
    """All further losses of one training: their sum, and a `Stepper` that carries their states."""

    def __init__(self, terms: Sequence[ExtraLoss], fabric: Any) -> None:
        self.terms, self._fabric, self._taken = list(terms), fabric, 0

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the sum of the losses at this step."""
        with self._fabric.autocast():
            values = [term.loss(model, self._taken) for term in self.terms]
        return torch.stack([v.float() for v in values]).sum()

    def step(self) -> None:
        """Count a step of the optimiser."""
        self._taken += 1

    def summaries(self) -> list[Any]:
        """Return what the losses have to tell of the training: those with `summary`, as JSON."""
        return [t.summary() for t in self.terms if hasattr(t, "summary")]  # pyrefly: ignore

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, and the states of the losses that have one."""
        kept = {str(i): t for i, t in enumerate(self.terms) if hasattr(t, "state_dict")}
        states = {i: t.state_dict() for i, t in kept.items()}  # pyrefly: ignore
        return {"taken": self._taken, "terms": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._taken = int(state["taken"])
        for i, one in state["terms"].items():
            self.terms[int(i)].load_state_dict(one)  # pyrefly: ignore
