"""A network that takes something else than images: token ids, a mask, several tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from regraft.config import ModelConfig


def own_network(config: ModelConfig, target: str, *, sketch: bool) -> tuple[nn.Module, Any]:
    """Return the network of a factory, and what its forward is called with.

    The factory is given `config.options` alone; nothing is assumed of what it takes or returns.

    Args:
        config: The network, as `package.module:factory`.
        target: `package.module:function`, which is called without arguments and returns a tensor, a
            tuple of positional arguments, or a dict of keyword arguments.
        sketch: Build it without memory for its weights, where that can be done.

    Raises:
        InputError: Either cannot be imported or fails, a width is given, or there are no inputs.
    """
    import torch

    from regraft.errors import InputError
    from regraft.models.external import call, imported

    if config.width != 1:
        raise InputError(f"--width {config.width:g} is for built-in networks: use --model-options")
    factory = imported(config.name)
    function = imported(target, "inputs")
    try:
        inputs = function()
    # It is somebody else's code, which may raise anything.
    except Exception as error:
        raise InputError(
            f"--inputs {target} could not be called ({type(error).__name__}: {error}): it takes no "
            "arguments and returns what the network is called with"
        ) from error
    if inputs is None:
        raise InputError(
            f"--inputs {target} returned None: expected a tensor, a tuple, or a dict of keyword "
            "arguments"
        )
    if not sketch:
        return call(config.name, factory, config.options), inputs
    try:
        with torch.device("meta"):
            return call(config.name, factory, config.options), inputs
    except (InputError, RuntimeError, NotImplementedError):
        return call(config.name, factory, config.options), inputs


__all__ = ["own_network"]
