"""What the processes of a distributed run have to tell each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world() -> tuple[int, int]:
    """Return (rank, number of processes); (0, 1) outside of a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_(*tensors: Tensor) -> None:
    """Add up tensors over all processes, in place."""
    if world()[1] > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows [n, ...] of all processes in the order of their ranks; n may differ."""
    _, size = world()
    if size == 1:
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(size)]
    dist.all_gather(counts, count)
    lengths = [int(c) for c in counts]
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])


def synced_call(module: nn.Module, x: Tensor) -> Tensor:
    """Call a module outside of DDP; its gradients are averaged over processes, as DDP would.

    Every process has to call it in the same steps. Under a DDP of its own it is right as well: the
    average of averages is the average.
    """
    if world()[1] == 1:
        return module(x)
    parameters = {n: _AveragedGradient.apply(p) for n, p in module.named_parameters()}
    return torch.func.functional_call(module, parameters, (x,))


class _AveragedGradient(torch.autograd.Function):
    """The identity, whose gradient is averaged over processes."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor) -> Tensor:
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad / world()[1]
