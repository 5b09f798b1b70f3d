"""Convolutions and BatchNorms whose second derivative costs what it has to.

torch computes the derivative of a convolution's backward pass to its weights whether anybody wants it, a
convolution with a kernel as large as the image, and makes that of BatchNorm's backward pass of some fifty
operations on the batch. Inside `Twice` both have their second derivative written out, to inputs and to
gradients of outputs; to weights there is none, and none may be asked for.

With x' the normalised input, r = 1 / sqrt(var + e), s = w r and means over all but channels:

    gx = s (g - mean g - x' mean g x'),    gw = sum g x',    gb = sum g
    d<u, gx>/dx = -s r [x' (mean ug - mean u mean g - 3 mean ux' mean gx') + mean gx' (u - mean u)
                        + mean ux' (g - mean g)]
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

_backward = torch.ops.aten.convolution_backward
_norm_backward = torch.ops.aten.native_batch_norm_backward


class Twice(TorchFunctionMode):
    """Inside, two-dimensional convolutions and BatchNorms that normalise by the batch are these here.

    Running statistics are not kept. Other calls are left alone.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call what stands in for `func`, or `func`."""
        more = kwargs or {}
        if func is F.conv2d and len(args) == 7 and not isinstance(args[4], str):
            sizes = [list(s) if isinstance(s, tuple | list) else [s, s] for s in args[3:6]]
            return _Convolution.apply(*args[:3], (*sizes, args[6]))
        if func is F.batch_norm and more.get("training") and more.get("weight") is not None:
            return _Norm.apply(args[0], more["weight"], more.get("bias"), more.get("eps", 1e-5))
        return func(*args, **more)


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, how: Any) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.how, ctx.bias = how, None if b is None else list(b.shape)
        return F.conv2d(x, w, b, *how)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        wanted = (*ctx.needs_input_grad[:2], ctx.bias is not None)
        back = _ConvolutionBackward.apply(*slopes, *ctx.saved_tensors, ctx.how, ctx.bias, wanted)
        return (*back, None)


class _ConvolutionBackward(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, how: Any, bias: Any, wanted: Any) -> Any:
        ctx.save_for_backward(g, x, w)
        ctx.how = how
        ctx.set_materialize_grads(False)
        return _backward(g, x, w, bias, *how[:3], False, [0, 0], how[3], list(wanted))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> Any:
        (g, x, w), (u, v, c) = ctx.saved_tensors, slopes
        to_g = to_x = None
        if v is not None:
            to_g = F.conv2d(x, v, c, *ctx.how)
            only_x = [True, False, False]
            to_x = _backward(g, x, v, None, *ctx.how[:3], False, [0, 0], ctx.how[3], only_x)[0]
        elif c is not None:
            to_g = c.view(1, -1, 1, 1).expand_as(g).clone()
        if u is not None:
            own = F.conv2d(u, w, None, *ctx.how)
            to_g = own if to_g is None else to_g.add_(own)
        return to_g, to_x, None, None, None, None


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, eps: float) -> Tensor:
        y, mean, r = torch.native_batch_norm(x, w, b, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, w, mean, r)
        ctx.eps, ctx.bias = eps, b is not None
        return y

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        x, w, b = _NormBackward.apply(*slopes, *ctx.saved_tensors, ctx.eps)
        return x, w, b if ctx.bias else None, None


class _NormBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, w: Tensor, mean: Tensor, r: Tensor, eps: float
    ) -> Any:
        every = [True, True, True]
        gx, gw, gb = _norm_backward(g, x, w, None, None, mean, r, True, eps, every)
        ctx.save_for_backward(g, x, w, mean, r, gw, gb)
        ctx.set_materialize_grads(False)
        return gx, gw, gb

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> Any:
        g, x, w, mean, r, gw, gb = ctx.saved_tensors
        u, to_w, to_b = slopes
        n, dims = x.numel() // len(w), [d for d in range(x.dim()) if d != 1]
        shape = (1, -1, *(1,) * (x.dim() - 2))

        def plus(start: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
            """Return start + sum factor * tensor, start and factors being of channels."""
            total = start.view(shape)
            for factor, tensor in terms:
                total = torch.addcmul(total, factor.view(shape), tensor)
            return total

        s, g_mean, g_along = w * r, gb / n, gw / n
        a = torch.zeros_like(w) if to_w is None else to_w
        b = torch.zeros_like(w) if to_b is None else to_b
        # x' = (x - mean) r is never made: its factors go to x and to the constant.
        if u is None:
            return (
                plus(b - a * r * mean, (a * r, x)),
                plus(a * r * (r * g_along * mean - g_mean), (a * r, g), (-a * r * r * g_along, x)),
                *(None,) * 4,
            )
        u_mean = u.mean(dims)
        u_along = ((u * x).sum(dims) / n - mean * u_mean) * r
        both = (u * g).sum(dims) / n
        q = (a - s * u_along) * r
        of_x = -s * r * (both - u_mean * g_mean - 3 * u_along * g_along) - a * r * g_along
        rest = s * r * g_along * u_mean - q * g_mean - of_x * r * mean
        return (
            plus(b - s * u_mean - q * mean, (s, u), (q, x)),
            plus(rest, (q, g), (-s * r * g_along, u), (of_x * r, x)),
            *(None,) * 4,
        )
