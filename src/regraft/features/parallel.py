"""What the processes of a distributed run have to tell each other."""

from __future__ import annotations

from collections.abc import Iterable

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


def average_gradients_of_(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of parameters outside of a DDP module over processes, as DDP would.

    The average is taken whenever a gradient has been accumulated; taking it again changes nothing,
    so this is right with gradient accumulation, and inside of a DDP module too.
    """
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(_average_gradient)


def _average_gradient(parameter: Tensor) -> None:
    _, size = world()
    if size > 1 and parameter.grad is not None:
        dist.all_reduce(parameter.grad)
        parameter.grad /= size
