"""BatchNorm that stays in evaluation mode while the rest of a network trains."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from regraft.models.classifier import unwrap


def freeze_batchnorm_(model: nn.Module, *, affine: bool = False) -> nn.Module:
    """Keep every BatchNorm of a network in evaluation mode, whatever `model.train()` says.

    Its running statistics are used as they are and no longer updated: with few images, or batches
    of one class, those of the source are often better. Scales and shifts go on learning unless
    `affine` freezes them as well. Calling it again changes nothing.

    Args:
        model: The network.
        affine: Freeze scales and shifts too.

    Returns:
        The same network.
    """
    model = unwrap(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            if affine and module.affine:
                module.requires_grad_(False)
    if not any(hook is _evaluate_batchnorm for hook in model._forward_pre_hooks.values()):
        # A hook on the network as a whole, since training loops call `train()` at every epoch.
        model.register_forward_pre_hook(_evaluate_batchnorm)
    return model


def _evaluate_batchnorm(model: nn.Module, _: Any) -> None:
    if model.training:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.training = False
