"""The masked weight of a partly frozen tensor, with scores for its free positions alone.

A bool plane (a byte a weight) says which positions are free. On the CPU both directions go through
the tensors in chunks that stay in the cache, so that no index and no temporary of full size is ever
made: training memory falls with the frozen share. Elsewhere, and inside functorch transforms and
compiled graphs, plain torch operations of static shape do the same.

References:
    Otsuka et al., "Partially frozen random networks contain compact strong lottery tickets",
    TMLR 2025.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft._shapes import Bool, Float

_CHUNK = 1 << 16


def partly_masked_weight(
    weight: Float[Tensor, "*shape"],
    scores: Float[Tensor, " searched"],
    free: Bool[Tensor, "*shape"],
    threshold: Tensor | float,
    *,
    magnitude: bool = False,
) -> Float[Tensor, "*shape"]:
    """Return W with the free positions multiplied by M = 1[S >= tau], and dL/dM passed to S.

    The other positions stand: locked ones hold their weight, those pruned for good a zero. The
    gradient is dL/dS = W * dL/dW_eff at the free positions (times sign(S) with `magnitude`); W is
    frozen and gets none.

    Args:
        weight: W, zero where pruned for good.
        scores: S, one for each free position in flat order.
        free: Which positions are free.
        threshold: tau, a number or a 0-dim tensor (which costs no synchronisation on a GPU).
        magnitude: Compare |S| instead of S.
    """
    return _PartlyMaskedWeight.apply(weight, scores, free, threshold, magnitude)


class _PartlyMaskedWeight(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor, scores: Tensor, free: Tensor, threshold: Tensor | float, magnitude: bool
    ) -> Tensor:
        arrays = _flat(weight, scores, free)
        if arrays is not None:
            out = torch.empty_like(weight, memory_format=torch.contiguous_format)
            w, s, plane = arrays
            _mask_chunks(w, s, plane, float(threshold), magnitude, out.reshape(-1).numpy())
            return out
        kept = (scores.abs() if magnitude else scores) >= threshold
        flat = free.reshape(-1)
        keep = kept[_place(flat).clamp(0, max(scores.numel() - 1, 0))] | ~flat
        return weight * keep.reshape(weight.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, scores, free, _, magnitude = inputs
        ctx.save_for_backward(weight, scores if magnitude else None, free)
        ctx.searched = scores.numel()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, None, None, None]:
        (grad,) = grads
        weight, scores, free = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return None, None, None, None, None
        # NumPy leaves no graph behind, which a second derivative needs.
        arrays = None if torch.is_grad_enabled() else _flat(grad, weight, free)
        if arrays is not None:
            out = grad.new_empty(ctx.searched)
            g, w, plane = arrays
            _gather_chunks(g, w, plane, out.numpy())
        else:
            flat = free.reshape(-1)
            product = (grad * weight).reshape(-1)
            # Frozen positions go to one more place at the end, which is cut off again.
            place = torch.where(flat, _place(flat), ctx.searched)
            out = product.new_zeros(ctx.searched + 1).scatter(0, place, product)[: ctx.searched]
        if scores is not None:
            out = out * torch.sign(scores)
        return None, out, None, None, None


def _place(plane: Tensor) -> Tensor:
    """Return, for each free position, its place among the scores."""
    return torch.cumsum(plane, 0) - 1


def _flat(*tensors: Tensor) -> list[np.ndarray] | None:
    """Return the tensors as flat arrays, or None where NumPy cannot see them."""
    if torch.compiler.is_compiling() or any(t.device.type != "cpu" for t in tensors):
        return None
    try:
        return [t.detach().reshape(-1).numpy() for t in tensors]
    except (RuntimeError, TypeError):
        return None  # functorch tensors and bfloat16


def _chunks(free: np.ndarray) -> Iterator[tuple[slice, np.ndarray, slice]]:
    """Yield (positions, which of them are free, the places of their scores) chunk by chunk."""
    first = 0
    for start in range(0, free.size, _CHUNK):
        at = slice(start, min(start + _CHUNK, free.size))
        plane = free[at]
        last = first + int(np.count_nonzero(plane))
        yield at, plane, slice(first, last)
        first = last


def _mask_chunks(
    weight: np.ndarray,
    scores: np.ndarray,
    free: np.ndarray,
    threshold: float,
    magnitude: bool,
    out: np.ndarray,
) -> None:
    tau = scores.dtype.type(threshold)
    for at, plane, places in _chunks(free):
        keep = np.logical_not(plane)
        part = scores[places]
        keep[plane] = (np.abs(part) if magnitude else part) >= tau
        np.multiply(weight[at], keep, out=out[at])


def _gather_chunks(grad: np.ndarray, weight: np.ndarray, free: np.ndarray, out: np.ndarray) -> None:
    product = np.empty(_CHUNK, dtype=out.dtype)
    for at, plane, places in _chunks(free):
        part = np.multiply(grad[at], weight[at], out=product[: plane.size])
        np.compress(plane, part, out=out[places])
