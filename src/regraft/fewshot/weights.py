"""The weights that a masked network computes with, m * phi, and the steps that they take, alpha m^2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from regraft.errors import InputError

from .linear_step import Rate


def check_mask(network: nn.Module, name: str, mask: Tensor) -> None:
    """Refuse a mask that belongs to no parameter of a network.

    Raises:
        InputError: An unknown name, or another shape than the parameter's.
    """
    parameters = dict(network.named_parameters())
    if name not in parameters:
        raise InputError(
            f"masks: the network has no parameter {name!r}; it has {', '.join(list(parameters)[:8])}"
        )
    if mask.shape != parameters[name].shape:
        raise InputError(
            f"masks: {name!r} has shape {list(parameters[name].shape)}, its mask {list(mask.shape)}"
        )


def effective(values: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that the network computes with, m * phi."""
    return {n: v * masks[n] if n in masks else v for n, v in values.items()}


def weights_and_rates(
    values: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    rates: Mapping[str, Rate],
    *,
    first_order: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Rate]]:
    """Return m * phi, and the step sizes alpha m^2 that it moves by.

    One factor m belongs to the inner gradient, m dL/dw: with `first_order` that one is a constant.
    """
    weights, scaled = dict(values), dict(rates)
    for n, mask in masks.items():
        rate = rates.get(n, 0.0)
        if isinstance(rate, Tensor):
            constant = mask.detach() if first_order else mask
            weights[n], scaled[n] = values[n] * mask, rate * mask * constant
        else:
            weights[n], scaled[n] = _Masked.apply(values[n], mask, rate, 1 if first_order else 2)
    return weights, scaled


class _Masked(torch.autograd.Function):
    """m * phi and alpha m^2 in two passes over the weight, and three back."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, mask: Tensor, rate: float, factors: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(value, mask)
        ctx.slope = factors * rate
        ctx.set_materialize_grads(False)
        scaled = torch.addcmul(mask.new_zeros(()), mask, mask, value=rate)
        return value * mask, scaled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyrefly: ignore
        to_weight, to_rate = grads
        value, mask = ctx.saved_tensors
        to_value = to_mask = None
        if to_weight is not None:
            to_value = to_weight * mask if ctx.needs_input_grad[0] else None
            to_mask = to_weight * value if ctx.needs_input_grad[1] else None
        if to_rate is not None and ctx.needs_input_grad[1]:
            base = mask.new_zeros(()) if to_mask is None else to_mask
            to_mask = torch.addcmul(base, to_rate, mask, value=ctx.slope)
        return to_value, to_mask, None, None
