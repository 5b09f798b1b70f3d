"""The one keeper of training and evaluation modes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Leave every part of a network in the mode it was in, whatever happens inside of this context.

    Parts differ where some are frozen: `model.train(was)` would put them all into one mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            # Not `train`, which sets the parts of a part as well, and which some networks overrule.
            module.training = training


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode inside of this context; see `kept_modes`."""
    with kept_modes(model):
        model.eval()
        yield
