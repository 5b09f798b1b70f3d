"""The weights that a masked network computes with, m * phi, and the steps that they take, alpha m^2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .linear_step import Rate


def effective(values: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that the network computes with, m * phi."""
    return {n: v * masks[n] if n in masks else v for n, v in values.items()}


def weights_and_rates(
    values: Mapping[str, Tensor], masks: Mapping[str, Tensor], rates: Mapping[str, Rate]
) -> tuple[dict[str, Tensor], dict[str, Rate]]:
    """Return m * phi, and the step sizes alpha m^2 that it moves by."""
    weights, scaled = dict(values), dict(rates)
    for n, mask in masks.items():
        rate = rates.get(n, 0.0)
        if isinstance(rate, Tensor):
            weights[n], scaled[n] = values[n] * mask, rate * mask.square()
        else:
            weights[n], scaled[n] = _Masked.apply(values[n], mask, rate)
    return weights, scaled


class _Masked(torch.autograd.Function):
    """m * phi and alpha m^2 in two passes over the weight, and three back."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, mask: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(value, mask)
        ctx.rate = rate
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
            to_mask = torch.addcmul(base, to_rate, mask, value=2 * ctx.rate)
        return to_value, to_mask, None
