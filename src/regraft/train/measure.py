"""How good a classifier is on a set of batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.models.modes import evaluating
from regraft.protocols import BatchSource

from .fabric import cast


@torch.no_grad()
def evaluate(
    model: nn.Module, source: BatchSource, *, fabric: Any = None, balanced: bool = False
) -> dict[str, float]:
    """Return the mean cross-entropy (`loss`, nats) and the `accuracy` (percent) in eval mode.

    With `balanced`, in one process, the mean over classes that occur of their accuracies as well.

    Every part of the model is left in the mode it was found in.
    """
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    sums = torch.zeros(3, dtype=torch.float64)
    right: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluating(model):
        for x, y, _ in source.batches(0, rank=rank, world=world):
            if fabric:
                x, y = fabric.to_device((x, y))
                x = cast(x, fabric)
            output = model(x).float()
            sums[0] += F.cross_entropy(output, y, reduction="sum").item()
            sums[1] += (output.argmax(1) == y).sum().item()
            sums[2] += len(y)
            if balanced:
                right.append((output.argmax(1) == y).cpu())
                labels.append(y.cpu())
    if world > 1:
        sums = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum").cpu()
    count = max(sums[2].item(), 1.0)
    figures = {"loss": sums[0].item() / count, "accuracy": 100.0 * sums[1].item() / count}
    if balanced:
        figures["balanced_accuracy"] = balanced_accuracy(torch.cat(right), torch.cat(labels))
    return figures


def balanced_accuracy(right: Tensor, labels: Tensor) -> float:
    """Return the mean over classes that occur of the share that is right, in percent.

    Args:
        right: Whether each image is right, bool [n].
        labels: Its class [n].
    """
    shares = [right[labels == k].double().mean() for k in labels.unique()]
    return 100.0 * torch.stack(shares).mean().item()


@torch.no_grad()
def outputs(model: nn.Module, source: BatchSource, *, fabric: Any = None) -> tuple[Tensor, Tensor]:
    """Return logits float32 [n, K] and labels [n] of all images, on the CPU, in eval mode.

    Every part of the model is left in the mode it was found in. Made for one process.
    """
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    with evaluating(model):
        for x, y, _ in source.batches(0):
            moved = cast(fabric.to_device(x), fabric) if fabric else x
            logits.append(model(moved).float().cpu())
            labels.append(y.cpu())
    return torch.cat(logits), torch.cat(labels)
