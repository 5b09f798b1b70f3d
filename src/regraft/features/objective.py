"""A method as an ordinary loss of outputs and targets, for loops that take one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from regraft.models.classifier import logits_of

from .method import Method


class Objective(nn.Module):
    """(output, targets) -> base(logits, targets) with the method's term, in training.

    In evaluation mode, as for a validation loss, it is the base loss alone.

    Args:
        method: The prepared method.
        base: The base loss, cross-entropy by default.
    """

    def __init__(self, method: Method, base: nn.Module | None = None) -> None:
        super().__init__()
        self.method = method
        self.base = base or nn.CrossEntropyLoss()

    def forward(self, output: Any, targets: Tensor) -> Tensor:
        """Return the objective for what the network's latest forward pass returned."""
        base = self.base(logits_of(output), targets)
        return self.method(base, targets) if self.training else base
