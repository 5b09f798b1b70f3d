"""A running average of a network's weights, which generalises better than the last step's.

References:
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; Tarvainen
    and Valpola, "Mean teachers are better role models", NeurIPS 2017, section 3 (the exponential
    one, and why the decay must grow at the start).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import InputError


class Average:
    """Exponential moving average: a <- d_t a + (1 - d_t) w, d_t = min(decay, (1 + t) / (10 + t)).

    The decay grows with the number of steps t, so that the start is forgotten in short runs too.
    Everything of the state dict that is a floating number is averaged, running statistics as well;
    the rest (counters) is copied. It is a `Stepper`: step it after every optimiser step.

    Args:
        model: The network, as it is at the start.
        decay: The largest d, in [0, 1).

    Raises:
        InputError: A decay out of its range.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.99) -> None:
        if not 0.0 <= decay < 1.0:
            raise InputError(f"ema={decay}: expected a decay in [0, 1), e.g. 0.99")
        self.model, self.decay, self.steps = model, decay, 0
        self._state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def step(self) -> None:
        """Take in the weights of one more step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self._state[name].lerp_(value, 1.0 - decay)
            else:
                self._state[name].copy_(value)

    def averaged(self) -> dict[str, Tensor]:
        """Return the averaged state dict of the network."""
        return self._state

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the network, and its own weights back afterwards."""
        own = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        try:
            self._put(self._state)
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        # In place: wrapped and compiled forms of the network share these tensors.
        for name, tensor in self.model.state_dict().items():
            tensor.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of steps."""
        return {"steps": self.steps, "state": self._state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.steps = state["steps"]
        for name, value in state["state"].items():
            self._state[name].copy_(value)
