"""The few contracts everything hangs on.

Four kinds of method plug into somebody else's training loop, and none needs a trainer of ours:

* things that change weights are `torch.nn.utils.parametrize` parametrisations (plain `nn.Module`s);
* things that happen over time follow `Stepper`;
* losses are `nn.Module`s;
* weight-space operations are pure functions on state dicts.

What our own loop (`regraft.train`) feeds on follows `BatchSource`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Stepper(Protocol):
    """Something that happens over time, in the manner of a learning-rate scheduler.

    `step()` is called once after every optimiser step. `state_dict()` holds only tensors, numbers,
    strings, lists and dicts, so that it can be stored without pickle; loading it makes the object
    go on exactly as if it had never stopped.
    """

    def step(self) -> None:
        """Advance by one optimiser step."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


@runtime_checkable
class BatchSource(Protocol):
    """Labelled batches whose order depends on nothing but a seed and the epoch.

    `batches(epoch, start=k)` yields exactly what `batches(epoch)` yields from its k-th batch on,
    which is what makes resuming exact. With `world` processes each gets its own share of every
    global batch; the shares of one batch together are the batch.
    """

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def batches(
        self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield (images [b, C, H, W], labels [b], size of the global batch)."""
