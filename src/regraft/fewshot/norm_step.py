"""BatchNorm and ReLU of the exact step, forward and backward, each with its own derivative written out.

With z the outputs of a linear layer, [T, r, C], statistics over the first n rows of each task:

    s = 1 / sqrt(var + eps),   h = (z - mean) s,   y = relu(gamma h + beta),

and for the gradient d at y, where all rows give the statistics,

    e = d 1[y > 0],   mu = mean e,   rho = mean e h,   dL/dz = s gamma (e - mu - h rho).

The backward pass of the support set is itself a step of the outer graph, so `NormBack` is a function with
a derivative as `Norm` is. `torch.var_mean` is avoided: over the middle axis it is slower than a product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Norm(torch.autograd.Function):
    """y, h and s above; `shift` is a bias below BatchNorm, which takes it away: its gradient is 0."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        gamma: Tensor,
        beta: Tensor,
        shift: Tensor | None,
        eps: float,
        relu: bool,
        rows: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, h and s; see `torch.autograd.Function`."""
        part = z if rows is None else z[:, :rows]
        centred = z - part.mean(1, keepdim=True)
        own = centred if rows is None else centred[:, :rows]
        scale = (own * own).mean(1, keepdim=True).add_(eps).rsqrt_()
        normal = centred.mul_(scale)
        y = torch.addcmul(beta, normal, gamma)
        if relu:
            y.relu_()
        ctx.save_for_backward(normal, scale, gamma, beta, shift, y if relu else None)
        ctx.rows = rows
        ctx.set_materialize_grads(False)
        return y, normal, scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyrefly: ignore
        """Return the gradients at z, gamma, beta and the shift."""
        to_y, to_normal, to_scale = grads
        normal, scale, gamma, beta, shift, y = ctx.saved_tensors
        to_gamma = to_beta = None
        total = to_normal
        if to_y is not None:
            if y is not None:
                to_y = torch.ops.aten.threshold_backward(to_y, y, 0)
            if ctx.needs_input_grad[1]:
                to_gamma = _shaped_like(gamma, to_y * normal)
            if ctx.needs_input_grad[2]:
                to_beta = _shaped_like(beta, to_y)
            scaled = to_y * gamma
            total = scaled if total is None else scaled.add_(total)
        if total is None:
            total = torch.zeros_like(normal)
        along = (total * normal).sum(1, keepdim=True)
        if to_scale is not None:
            along = torch.addcmul(along, to_scale, scale)
        n = normal.shape[1] if ctx.rows is None else ctx.rows
        shared = total.sum(1, keepdim=True)
        own = normal if ctx.rows is None else normal[:, :n]
        less = torch.addcmul(shared, own, along).mul_(-1 / n)
        if ctx.rows is None:
            to_z = less.add_(total)
        else:
            to_z = total.clone()
            to_z[:, :n] += less
        none = torch.zeros_like(shift) if shift is not None and ctx.needs_input_grad[3] else None
        return to_z.mul_(scale), to_gamma, to_beta, none, None, None, None


class NormBack(torch.autograd.Function):
    """dL/dz, mu and rho above; d, h, s and gamma have gradients, y's sign has none."""

    @staticmethod
    def forward(
        ctx: Any, delta: Tensor, y: Tensor | None, normal: Tensor, scale: Tensor, gamma: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return dL/dz, mu and rho; see `torch.autograd.Function`."""
        cut = delta if y is None else torch.ops.aten.threshold_backward(delta, y, 0)
        mean = cut.mean(1, keepdim=True)
        along = (cut * normal).mean(1, keepdim=True)
        rest = torch.addcmul(cut - mean, normal, along, value=-1)
        factor = scale * gamma
        ctx.save_for_backward(y, cut, normal, scale, gamma, along, rest, factor)
        ctx.set_materialize_grads(False)
        return rest * factor, mean, along

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyrefly: ignore
        """Return the gradients at d, h, s and gamma."""
        to_out, to_mean, to_along = grads
        y, cut, normal, scale, gamma, along, rest, factor = ctx.saved_tensors
        n = cut.shape[1]
        to_scale = to_gamma = to_normal = None
        if to_out is None:
            to_cut = torch.zeros_like(cut)
        else:
            to_factor = (to_out * rest).sum(1, keepdim=True)
            to_scale = to_factor * gamma
            if ctx.needs_input_grad[4]:
                to_gamma = _shaped_like(gamma, to_factor * scale)
            to_cut = to_out * factor
            to_normal = to_cut * along
            less, less_along = to_cut.sum(1, keepdim=True), (to_cut * normal).sum(1, keepdim=True)
            to_mean = less.neg_() if to_mean is None else to_mean - less
            to_along = less_along.neg_() if to_along is None else to_along - less_along
        if to_mean is not None:
            to_cut = to_cut.add_(to_mean, alpha=1 / n)
        if to_along is not None:
            shared = to_along * (1 / n)
            to_cut.addcmul_(normal, shared)
            change = cut * shared
            to_normal = change if to_normal is None else change.sub_(to_normal)
        if y is not None:
            to_cut = torch.ops.aten.threshold_backward(to_cut, y, 0)
        return to_cut, None, to_normal, to_scale, to_gamma


def _shaped_like(parameter: Tensor, grad: Tensor) -> Tensor:
    """Return a gradient summed to its parameter: one for all tasks, [C], or one a task, [T, 1, C]."""
    if parameter.ndim == 1:
        return grad.sum((0, 1))
    return grad.sum(1, keepdim=True) if grad.shape[1] > 1 else grad
