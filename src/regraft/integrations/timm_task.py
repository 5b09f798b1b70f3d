"""A fine-tuning method in timm's training task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import MissingExtraError
from regraft.features import Method

try:
    from timm.task import ClassificationTask
except ImportError as error:
    raise MissingExtraError(
        "timm with timm.task (1.0.31 or newer)", "vision", "this task"
    ) from error


class FinetuneTask(ClassificationTask):
    """timm's classification task with a method's term; its result also has `base_loss`.

    Distribution, compilation, EMA and checkpoints are timm's; the method's state is in the task's.
    Call `method.follow(optimizer)` once, since timm's loop has no place for `method.step()`.

    Args:
        model: The network the method was prepared on.
        method: The prepared method.
        criterion: The base loss, timm's by default.
        options: Further arguments of `ClassificationTask`.

    Example:
        >>> method = AdaRand().prepare(model, loader, steps=steps)
        >>> task = FinetuneTask(model, method, device=device)
        >>> optimizer = create_optimizer_v2(model, opt="sgd", lr=0.01)
        >>> method.follow(optimizer)
    """

    def __init__(
        self, model: nn.Module, method: Method, criterion: Any = None, **options: Any
    ) -> None:
        super().__init__(model, criterion, **options)
        self.method = method.to(self.device)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return `loss`, `output` and `base_loss` for images and their targets."""
        result = super().forward(input, target)
        base = result["loss"]
        if self.training and torch.is_grad_enabled():
            result["loss"] = self.method(base, target)
        return result | {"base_loss": base.detach()}

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Return the method's state."""
        return {} if ema else {"method": self.method.state_dict()}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Restore the method's state."""
        if state and not ema:
            self.method.load_state_dict(state["method"], strict=strict)
