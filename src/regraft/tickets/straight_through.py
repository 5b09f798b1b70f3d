"""The masked weight and its straight-through gradient, in as few memory passes as torch allows.

References:
    Bengio et al., "Estimating or propagating gradients through stochastic neurons", 2013.
    Ramanujan et al., CVPR 2020, section 3; Chijiwa et al., NeurIPS 2021, section 2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from regraft._shapes import Float


class _MaskedWeight(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor, scores: Tensor, threshold: Tensor | float, magnitude: bool
    ) -> Tensor:
        return _keep_above(weight, scores, threshold, magnitude)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, scores, threshold, magnitude = inputs
        tensor = isinstance(threshold, Tensor)
        needs_scores = magnitude or ctx.needs_input_grad[0]
        ctx.save_for_backward(
            weight, scores if needs_scores else None, threshold if tensor else None
        )
        ctx.threshold = None if tensor else threshold
        ctx.magnitude = magnitude

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        weight, scores, threshold = ctx.saved_tensors
        grad_weight = grad_scores = None
        if ctx.needs_input_grad[0]:
            limit = ctx.threshold if threshold is None else threshold
            grad_weight = _keep_above(grad, scores, limit, ctx.magnitude)
        if ctx.needs_input_grad[1]:
            grad_scores = grad * weight
            if ctx.magnitude:
                grad_scores = grad_scores * torch.sign(scores)
        return grad_weight, grad_scores, None, None


def masked_weight(
    weight: Float[Tensor, "*shape"],
    scores: Float[Tensor, "*shape"],
    threshold: Tensor | float,
    *,
    magnitude: bool = False,
) -> Float[Tensor, "*shape"]:
    """Return W * M with M = 1[S >= tau], and dL/dM passed straight through to S.

    Gradients: dL/dS = W * dL/d(W * M) (times sign(S) with `magnitude`, where M = 1[|S| >= tau]),
    and dL/dW = M * dL/d(W * M); each is computed only where it is asked for.

    Args:
        weight: W, any shape.
        scores: S, shaped like `weight`.
        threshold: tau, a number or a 0-dim tensor (which costs no synchronisation on a GPU).
        magnitude: Compare |S| instead of S.
    """
    return _MaskedWeight.apply(weight, scores, threshold, magnitude)


def _keep_above(
    values: Tensor, scores: Tensor, threshold: Tensor | float, magnitude: bool
) -> Tensor:
    if not isinstance(threshold, Tensor) and scores.dtype in (torch.float32, torch.float64):
        # One fused pass over memory: these kernels are 1[S > t] * W for a number t, so t is the
        # largest value below tau. `torch.where` makes two passes and is ten times slower on a CPU.
        below = _previous(threshold, scores.dtype)
        if not magnitude:
            return torch.ops.aten.threshold_backward(values, scores, below)
        if below >= 0:
            return torch.ops.aten.hardshrink_backward(values, scores, below)
    size = scores.abs() if magnitude else scores
    return torch.where(size >= threshold, values, values.new_zeros(()))


def _previous(x: float, dtype: torch.dtype) -> float:
    if dtype == torch.float64:
        return math.nextafter(x, -math.inf)
    return float(torch.nextafter(torch.tensor(x, dtype=dtype), torch.tensor(-math.inf)))
