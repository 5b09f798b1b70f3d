"""Checkpoints of an inner loop: what is computed is computed again in the backward pass.

`torch.utils.checkpoint` works by hooks on saved tensors, which `torch.func.grad` refuses inside of
itself; a function whose backward pass computes the value once more with a graph has no such limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten


def recomputed(call: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """Return `call(*arguments)` without keeping its graph; gradients reach the tensors in `arguments`.

    Args:
        call: Returns tensors, in tuples and dicts; it gives the same each time it is called.
        arguments: Dicts, tuples and tensors; what `call` closes over has no gradient.
    """
    leaves, spec = tree_flatten(list(arguments))
    at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    form: list[Any] = []

    def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
        whole = list(leaves)
        for i, tensor in zip(at, tensors, strict=True):
            whole[i] = tensor
        outputs, its_form = tree_flatten(call(*tree_unflatten(whole, spec)))
        form[:] = [its_form]
        return tuple(outputs)

    outputs = _Again.apply(flat, *(leaves[i] for i in at))
    return tree_unflatten(list(outputs), form[0])


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, flat: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> Any:
        ctx.flat = flat
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        # A tensor that is handed through is another to autograd.
        outputs = flat(*tensors)
        return tuple(o.clone() if any(o is t for t in tensors) else o for o in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyrefly: ignore
        wanted = ctx.needs_input_grad[1:]
        tensors = [
            t.detach().requires_grad_(w) for t, w in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            outputs = ctx.flat(*tensors)
        pairs = [
            (o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad
        ]
        inputs = [t for t in tensors if t.requires_grad]
        if not pairs or not inputs:
            return None, *(None for _ in tensors)
        ends, ahead = zip(*pairs, strict=True)
        got = iter(torch.autograd.grad(ends, inputs, ahead, allow_unused=True))
        return None, *(next(got) if w else None for w in wanted)
