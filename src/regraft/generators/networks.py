"""The random networks of a condensation: made from a seed, tried once, their norms frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from regraft.errors import InputError
from regraft.streams import seeded

from .gradient_matching import matched


def fresh(factory: Callable[[], nn.Module], seed: int, device: torch.device) -> nn.Module:
    """Return a network in evaluation mode, made while torch's generator is at `seed`.

    torch's generators are left as they were found.

    Raises:
        InputError: `factory` returned something else.
    """
    with seeded(seed, device):
        network = factory()
    if not isinstance(network, nn.Module):
        raise InputError(
            f"network returned a {type(network).__name__}: expected a function without arguments "
            "that makes an nn.Module"
        )
    return network.to(device).eval()


def refuse_misfit(network: nn.Module, shape: Sequence[int], num_classes: int) -> None:
    """Try a network on blank images of a shape.

    Raises:
        InputError: It has no trainable weight, cannot be given such images, or does not return a
            logit for each class.
    """
    weights = list(matched(network).values())
    if not weights:
        raise InputError("network has no trainable weight: nothing to match")
    blank = torch.zeros(2, *shape, dtype=weights[0].dtype, device=weights[0].device)
    try:
        with torch.no_grad():
            returned = list(network(blank).shape)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"network cannot be given images of shape {list(shape)} "
            f"({' '.join(str(error).split())}): make one for them"
        ) from error
    if returned != [2, num_classes]:
        raise InputError(
            f"network returned {returned} for 2 images: expected [2, {num_classes}], a logit for "
            "each class"
        )


def freeze_norms_(network: nn.Module, images: Tensor) -> None:
    """Put the network into evaluation mode with the running statistics of `images`.

    The gradient of a class must not depend on statistics of that class's batch, which a handful of
    synthetic images cannot have.

    Args:
        network: The network; changed in place.
        images: Normalised images of all classes, [n, C, H, W].

    Raises:
        InputError: A BatchNorm layer keeps no running statistics.
    """
    network.eval()
    norms = [m for m in network.modules() if isinstance(m, _NormBase)]
    for norm in norms:
        if isinstance(norm, _BatchNorm) and not norm.track_running_stats:
            raise InputError(
                "the network has a BatchNorm without running statistics (track_running_stats is "
                "false), so they cannot be frozen: give one that keeps them"
            )
    tracking = [(norm, norm.momentum) for norm in norms if norm.track_running_stats]
    if not tracking:
        return
    for norm, _ in tracking:
        norm.reset_running_stats()
        norm.momentum = 1.0  # nothing of what came before
        norm.train()
    with torch.no_grad():
        network(images)
    for norm, momentum in tracking:
        norm.momentum = momentum
        norm.eval()
