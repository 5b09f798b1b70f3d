"""Limits on a network that a file names, held while it is built."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import UninitializedParameter

from regraft.errors import InputError

MOST_LAYERS = 1 << 15
"""Modules that a network may consist of; the largest of timm have about a tenth of it."""

_MAX_UNSKETCHED = 1 << 24


@contextlib.contextmanager
def bounded(weights: int | None = None) -> Iterator[None]:
    """Refuse a network under construction as soon as it has far more layers or weights than its file.

    Args:
        weights: Weights of the file; None for a network on the device that stores nothing.

    Raises:
        InputError: More than `MOST_LAYERS` modules, or more than four times the weights and 2^24.
    """
    # A factory may make a layer that it then replaces, such as a head of a thousand classes.
    most = None if weights is None else _MAX_UNSKETCHED + 4 * weights
    layers = made = 0

    def count_layers(module: Any, name: str, child: Any) -> None:
        nonlocal layers
        layers += 1
        if layers > MOST_LAYERS:
            raise InputError(
                f"the network has more than {MOST_LAYERS} layers: build the architecture that the "
                "file is of"
            )

    def count_weights(module: Any, name: str, parameter: Any) -> None:
        nonlocal made
        made += 0 if isinstance(parameter, UninitializedParameter) else parameter.numel()
        if most is not None and made > most:
            raise InputError(
                f"the network has more than {most} weights, far more than its file: build the "
                "architecture that the file is of"
            )

    hooks = (
        register_module_module_registration_hook(count_layers),
        register_module_parameter_registration_hook(count_weights),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
