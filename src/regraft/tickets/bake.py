"""From a masked model to a plain one with zeroed weights and the same outputs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from regraft.errors import InputError
from regraft.models.copying import copy_module

from .mask import FixedMask, Mask, named_masks


@torch.no_grad()
def bake(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in which every masked weight is a plain parameter W * M.

    The copy has the classes, names and state-dict keys of the model before it was masked, needs
    nothing from Regraft, and gives equal outputs. Its parameters take gradients again. Other
    parametrisations are left alone.

    Raises:
        InputError: The model has no masked weight.
    """
    if not any(True for _ in named_masks(model)):
        raise InputError("model has no masked weight: mask it first, with `edge_popup(model)`")
    baked = copy_module(model)
    weights: dict[int, nn.Parameter] = {}
    for module in [m for m in baked.modules() if parametrize.is_parametrized(m)]:
        entries = dict(module.parametrizations.items())  # pyrefly: ignore
        ours = {
            name: entry
            for name, entry in entries.items()
            if any(isinstance(p, Mask | FixedMask) for p in entry)
        }
        if not ours:
            continue
        for name, entry in entries.items():
            if id(entry) not in weights:
                weights[id(entry)] = nn.Parameter(getattr(module, name).detach().clone())
        # `remove_parametrizations` would also strip the class that a deep copy shares with `model`.
        module.__class__ = type(module).__bases__[0]
        del module.parametrizations
        for name, entry in entries.items():
            setattr(module, name, weights[id(entry)])
            if name not in ours:
                parametrize.register_parametrization(module, name, nn.Identity(), unsafe=True)
                module.parametrizations[name] = entry  # pyrefly: ignore
    if hasattr(baked, "_ddp_params_and_buffers_to_ignore"):
        del baked._ddp_params_and_buffers_to_ignore
    for parameter in baked.parameters():
        parameter.requires_grad_(True)
    return baked
