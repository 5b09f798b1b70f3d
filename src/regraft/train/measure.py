"""How good a classifier is on a set of batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.protocols import BatchSource

from .fabric import cast


@torch.no_grad()
def evaluate(model: nn.Module, source: BatchSource, *, fabric: Any = None) -> dict[str, float]:
    """Return the mean cross-entropy (`loss`, nats) and the `accuracy` (percent) in eval mode.

    Every part of the model is left in the mode it was found in.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    sums = torch.zeros(3, dtype=torch.float64)
    for x, y, _ in source.batches(0, rank=rank, world=world):
        if fabric:
            x, y = fabric.to_device((x, y))
            x = cast(x, fabric)
        output = model(x).float()
        sums[0] += F.cross_entropy(output, y, reduction="sum").item()
        sums[1] += (output.argmax(1) == y).sum().item()
        sums[2] += len(y)
    if world > 1:
        sums = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum").cpu()
    for module, training in modes:
        module.training = training
    count = max(sums[2].item(), 1.0)
    return {"loss": sums[0].item() / count, "accuracy": 100.0 * sums[1].item() / count}


@torch.no_grad()
def outputs(model: nn.Module, source: BatchSource, *, fabric: Any = None) -> tuple[Tensor, Tensor]:
    """Return logits float32 [n, K] and labels [n] of all images, on the CPU, in eval mode.

    Every part of the model is left in the mode it was found in. Made for one process.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    found: list[Tensor] = []
    labels: list[Tensor] = []
    for x, y, _ in source.batches(0):
        moved = cast(fabric.to_device(x), fabric) if fabric else x
        found.append(model(moved).float().cpu())
        labels.append(y.cpu())
    for module, training in modes:
        module.training = training
    return torch.cat(found), torch.cat(labels)
