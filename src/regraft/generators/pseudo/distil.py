"""Distillation from a teacher of another architecture: what PP and P-SSL are held against.

    logits:  CE(f(x), y) + weight ||f(x) - t(x)||^2 / K
    soft:    (1 - weight) CE(f(x), y) + weight T^2 KL(softmax(t(x) / T) || softmax(f(x) / T))

References:
    Ba and Caruana, "Do deep nets really need to be deep?", NeurIPS 2014 (logits). Hinton, Vinyals and
    Dean, "Distilling the knowledge in a neural network", 2015 (soft targets).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.errors import InputError


class Distillation(nn.Module):
    """A loss (outputs [b, K], labels [b]) -> scalar that asks a teacher about the student's last images.

    Args:
        student: The network that is trained; its inputs are listened to.
        teacher: Images -> logits [b, K].
        kind: `logits` or `soft`.
        weight: Weight of the teacher.
        temperature: T, of `soft`.

    Raises:
        InputError: An unknown kind.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Callable[[Tensor], Tensor],
        *,
        kind: str = "soft",
        weight: float = 0.5,
        temperature: float = 4.0,
    ) -> None:
        super().__init__()
        if kind not in ("logits", "soft"):
            raise InputError(f"distil={kind!r}: expected logits or soft")
        self.kind, self.weight, self.temperature = kind, weight, temperature
        self._teacher = [teacher]  # in a list: its weights are none of this module's
        self._inputs: Tensor | None = None
        student.register_forward_pre_hook(self._listen)

    def _listen(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._inputs = inputs[0]

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the images that the student was just called with."""
        plain = F.cross_entropy(outputs, labels)
        if self._inputs is None or len(self._inputs) != len(outputs):
            raise InputError("the outputs are not those of the student's last images")
        with torch.no_grad():
            wanted = self._teacher[0](self._inputs)
        if self.kind == "logits":
            return plain + self.weight * F.mse_loss(outputs, wanted)
        t = self.temperature
        soft = F.kl_div(
            (outputs / t).log_softmax(1),
            (wanted / t).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.weight) * plain + self.weight * t * t * soft
