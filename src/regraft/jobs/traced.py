"""The symmetries of a recipe's networks: each architecture is traced once in a process."""

from __future__ import annotations

import time

import torch
from torch import nn

from regraft.config import ModelConfig, digest, to_dict
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.trace.trace import trace

_specs: dict[str, tuple[PermutationSpec, float]] = {}


def traced(
    model: nn.Module, config: ModelConfig, *, classes: int, channels: int, side: int
) -> tuple[PermutationSpec, float]:
    """Return the symmetries of `config`'s network, and the seconds it took, which count in every run.

    The example images are noise: through layers without biases blank ones would prove nothing.
    """
    shape = {"classes": classes, "channels": channels, "side": side}
    key = digest({"model": to_dict(config), **shape})
    if key not in _specs:
        began = time.perf_counter()
        noise = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))
        noise = noise.to(next(model.parameters()).device)
        _specs[key] = trace(model, noise), time.perf_counter() - began
    return _specs[key]
