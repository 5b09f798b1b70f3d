"""A classifier that generated images have to themselves, so that their labels never touch the real one."""

from __future__ import annotations

import torch
from torch import nn


class OwnHead(nn.Linear):
    """A linear layer that takes its own steps of SGD, in loops whose optimiser does not know it.

    Args:
        inputs: d.
        outputs: Classes of the source.
        seed: Seed of its weights.
    """

    def __init__(self, inputs: int, outputs: int, seed: int) -> None:
        super().__init__(inputs, outputs)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            bound = (6 / max(inputs, 1)) ** 0.5
            self.weight.copy_((torch.rand(self.weight.shape, generator=draw) * 2 - 1) * bound)
            self.bias.zero_()

    @torch.no_grad()
    def settle(self, lr: float) -> None:
        """Take the step that the last backward pass left to be taken, if there is one."""
        for tensor in self.parameters():
            if tensor.grad is not None:
                tensor -= lr * tensor.grad
                tensor.grad = None
