"""A classifier that generated images have to themselves, so that their labels never touch the real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class LearningHead(nn.Linear):
    """A linear layer whose gradient is that of a loss as it is, whatever that is multiplied by afterwards.

    What calls it learns through it as through any layer, but its weights are constants there. `learn` says
    of which loss they have a gradient; it is theirs once a backward pass has gone through that loss, with
    any factor (that of a `GradScaler`), and the mean over processes in a distributed run.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self._listens = False
        self._calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, input: Tensor) -> Tensor:
        """Return logits [b, K] of features [b, d], float32 at least."""
        weight, bias = self.weight.detach().to(input), self.bias.detach().to(input)
        logits = at_least_float32(F.linear(input, weight, bias))
        if self._listens and torch.is_grad_enabled():
            if not logits.requires_grad:  # nothing before it is trained
                logits.requires_grad_()
            self._calls.append((input.detach(), logits))
        return logits

    def listen(self, on: bool) -> None:
        """Let calls from now on count for the next `learn`, and none before; or not count."""
        self._listens = on
        if on:
            self._calls = []

    def learn(self, loss: Tensor) -> None:
        """Take the gradient of a scalar loss that the calls since `listen` led to.

        In a distributed run all processes have to call it.
        """
        calls, self._calls = self._calls, []
        if not calls or not loss.requires_grad:
            return
        slopes = torch.autograd.grad(
            loss, [logits for _, logits in calls], retain_graph=True, allow_unused=True
        )
        weight, bias = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        with torch.autocast(loss.device.type, torch.bfloat16, enabled=False):
            for (features, _), slope in zip(calls, slopes, strict=True):
                if slope is not None:
                    weight += (slope.T @ features.to(slope)).to(weight)
                    bias += slope.sum(0).to(bias)
        mean_over_processes((weight, bias))

        def keep(_: Tensor) -> None:
            for tensor, slope in ((self.weight, weight), (self.bias, bias)):
                tensor.grad = slope.clone() if tensor.grad is None else tensor.grad + slope

        loss.register_hook(keep)

    def ready(self) -> bool:
        """Return whether there is a gradient to take a step by; one that is not finite is dropped."""
        slopes = [p.grad for p in self.parameters() if p.grad is not None]
        if all(bool(torch.isfinite(s).all()) for s in slopes):
            return bool(slopes)
        for tensor in self.parameters():
            tensor.grad = None
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_calls": []}


class OwnHead(LearningHead):
    """A head that takes its own steps of SGD, in loops whose optimiser does not know it.

    Args:
        inputs: d.
        outputs: Classes of the source.
        seed: Seed of its weights.
    """

    def __init__(self, inputs: int, outputs: int, seed: int) -> None:
        super().__init__(inputs, outputs)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            bound = (6 / max(inputs, 1)) ** 0.5
            self.weight.copy_((torch.rand(self.weight.shape, generator=draw) * 2 - 1) * bound)
            self.bias.zero_()

    @torch.no_grad()
    def settle(self, lr: float) -> None:
        """Take the step that the last backward pass left to be taken, if there is one."""
        if not self.ready():
            return
        for tensor in self.parameters():
            if tensor.grad is not None:
                tensor -= lr * tensor.grad
                tensor.grad = None


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return numbers of half precision as float32, others as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def mean_over_processes(tensors: Sequence[Tensor]) -> None:
    """Bring tensors to their mean over the processes of a distributed run, in place."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()
