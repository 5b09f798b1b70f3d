"""What the tests of tracing share: examples, a residual block, and what a specification says."""

import torch
from torch import nn

IMAGE = torch.randn(2, 3, 32, 32)


IDS = torch.arange(12).reshape(2, 6)


def pinned(spec):
    return {(pin.tensor, pin.axis) for pin in spec.pins}


def shapes(spec):
    """Group shapes with how often each occurs."""
    found = {}
    for group in spec:
        found[group.shape] = found.get(group.shape, 0) + 1
    return found


def moved(spec, tensor, axis):
    """Positions of an axis that some group moves."""
    sites = [s for _, s in spec.by_tensor.get(tensor, ()) if s.axis == axis]
    return set(torch.cat([s.index.flatten() for s in sites]).tolist()) if sites else set()


class Block(nn.Module):
    def __init__(self, forward, **layers):
        super().__init__()
        self.inner = nn.ModuleDict(layers)
        self._forward = forward

    def forward(self, x):
        return self._forward(self.inner, x)


def linear(*sizes):
    return nn.Linear(*sizes)
