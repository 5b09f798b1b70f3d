"""Distillation from a teacher of another architecture: what PP and P-SSL are held against.

    logits:  CE(f(x), y) + weight ||f(x) - t(x)||^2 / K
    soft:    (1 - weight) CE(f(x), y) + weight T^2 KL(softmax(t(x) / T) || softmax(f(x) / T))

References:
    Ba and Caruana, "Do deep nets really need to be deep?", NeurIPS 2014 (logits). Hinton, Vinyals and
    Dean, "Distilling the knowledge in a neural network", 2015 (soft targets).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.errors import InputError


class Distillation(nn.Module):
    """A loss (outputs [b, K], labels [b]) -> scalar that asks a teacher about the student's last images.

    The student is listened to until `close()` or until the loss is no more; a copy of it is not.

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
        self._images = _Images()
        handle = student.register_forward_pre_hook(self._images, with_kwargs=True)
        self._end = weakref.finalize(self, handle.remove)

    def close(self) -> None:
        """Listen to the student no longer; the loss can be taken no more."""
        self._end()
        self._images.last = None

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the images that the student was just called with.

        Raises:
            InputError: It was called with other images, or is not listened to.
        """
        plain = F.cross_entropy(outputs, labels)
        images = self._images.last
        if images is None or len(images) != len(outputs):
            raise InputError("the outputs are not those of the student's last images")
        with torch.no_grad():
            wanted = self._teacher[0](images)
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


class _Images:
    """What a network was last called with. It knows nothing of the loss, which copies would copy too."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.last = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Images:
        memo[id(self)] = other = _Images()
        return other
