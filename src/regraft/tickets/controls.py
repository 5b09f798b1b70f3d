"""The controls every ticket is held against: random masks, shuffled masks, trained sparse nets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regraft import streams
from regraft.errors import InputError

from .allocate import Allocation, densities
from .bake import bake
from .edge_popup import choose
from .frozen import FrozenMask
from .mask import FixedMask, Mask, kept_scale, named_masks
from .select import pruned_count


def random_masks(
    model: nn.Module,
    sparsity: float,
    *,
    allocation: Allocation = "uniform",
    trainable: Sequence[str] = (),
    seed: int,
) -> dict[str, Tensor]:
    """Return a random mask for every maskable weight, bool, `sparsity` of them removed in all.

    Args:
        model: A plain model.
        sparsity: Fraction of the weights removed.
        allocation: How the kept weights spread over the layers: exactly `sparsity` in each, or as
            `densities` says.
        trainable: Patterns of names that get no mask.
        seed: Seed of the masks.

    Raises:
        InputError: No maskable weight, or a sparsity outside [0, 1].
    """
    chosen = choose(model, trainable=trainable)
    if not chosen:
        raise InputError("model has no maskable weight (Linear, Conv1d/2d/3d): nothing to prune")
    pruned_count(1, sparsity)
    shapes = [tuple(parameter.shape) for _, _, _, parameter in chosen]
    kept_shares = densities(shapes, 1.0 - sparsity, allocation)
    out = {}
    for (_, _, name, parameter), share in zip(chosen, kept_shares, strict=True):
        order = streams.permutation(seed, f"{name}#random_mask", 0, parameter.numel())
        removed = sparsity if allocation == "uniform" else 1.0 - share
        kept = order >= pruned_count(parameter.numel(), removed)
        out[name] = kept.reshape(parameter.shape)
    return out


def shuffled_masks(model: nn.Module, *, seed: int) -> dict[str, Tensor]:
    """Return the masks of `model`, each shuffled within its tensor: same sparsity, no structure.

    Of a partly frozen weight only the free positions are shuffled, among themselves: what is frozen
    was drawn at random, not found.

    Raises:
        InputError: The model has no masked weight.
    """
    out = {}
    for name, entry, mask in named_masks(model):
        bits = mask.mask(entry.original).cpu()
        free = mask.free.cpu() if isinstance(mask, FrozenMask) else torch.ones_like(bits)
        searched = bits[free]
        order = streams.permutation(seed, f"{name}#shuffled_mask", 0, searched.numel())
        out[name] = bits.masked_scatter(free, searched[order])
    if not out:
        raise InputError("model has no masked weight: mask it first, with `edge_popup(model)`")
    return out


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Fix `masks` on a plain model in place and return it: W * M with trainable W.

    Args:
        model: A model without masks.
        masks: Bool tensors by parameter name.

    Raises:
        InputError: A name the model lacks, or a mask of another shape.
    """
    for name, mask in masks.items():
        prefix, _, attribute = name.rpartition(".")
        try:
            owner = model.get_submodule(prefix)
            parameter = owner.get_parameter(attribute)
        except AttributeError as error:
            raise InputError(f"masks: the model has no parameter {name!r}") from error
        if parameter.shape != mask.shape:
            raise InputError(
                f"masks: {name!r} has shape {tuple(mask.shape)}, the parameter "
                f"{tuple(parameter.shape)}"
            )
        fixed = FixedMask(mask.to(parameter.device))
        parametrize.register_parametrization(owner, attribute, fixed, unsafe=False)
    return model


@torch.no_grad()
def shuffled(model: nn.Module, *, seed: int) -> nn.Module:
    """Return a copy of a masked model with the same random weights and its masks shuffled.

    Frozen positions stay as they are, and a dynamic scale stays: as many weights are kept.

    Raises:
        InputError: The model has no masked weight.
    """
    mixed = shuffled_masks(model, seed=seed)
    copy = unmask(model)
    for name, _, mask in named_masks(model):
        weight, kept = copy.get_parameter(name), mixed[name]
        weight.mul_(kept.to(weight.device))
        if isinstance(mask, Mask) and mask.dynamic_scale:
            weight.mul_(kept_scale(kept.sum(), kept.numel()).to(weight))
    return copy


@torch.no_grad()
def unmask(model: nn.Module) -> nn.Module:
    """Return a plain copy of an edge-popup model with its whole random weights, nothing pruned.

    That is W also where a partly frozen weight is pruned for good, and without a dynamic scale, which
    is 1 where everything is kept.

    Raises:
        InputError: The model has no masked weight.
    """
    plain = bake(model)
    for name, _, mask in named_masks(model):
        if isinstance(mask, Mask):
            plain.get_parameter(name).copy_(mask.whole())
    return plain
