"""Labelled batches of any kind as a source whose epochs can be gone on with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeAlias

from torch import Tensor

from regraft.errors import InputError
from regraft.protocols import BatchSource

LabelledBatches: TypeAlias = BatchSource | Iterable[Any]
"""A source, or anything that gives (images, labels) batch by batch: a list, a `DataLoader`, a generator."""


def as_source(batches: LabelledBatches, what: str = "batches") -> BatchSource:
    """Return batches as a source. What can be gone through only once is kept in memory.

    Raises:
        InputError: They are no batches of images and labels.
    """
    if isinstance(batches, BatchSource):
        return batches
    if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
        raise InputError(
            f"{what}: {type(batches).__name__} is no series of batches; give batches of (images, labels)"
        )
    once = isinstance(batches, Iterator) or not isinstance(batches, Sized)
    return _Series(list(batches) if once else batches, what)


class _Series:
    """Batches of a collection; each epoch goes through it once more."""

    def __init__(self, batches: Any, what: str) -> None:
        self.items, self.what = batches, what

    def __len__(self) -> int:
        return len(self.items)

    def batches(
        self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield (images, labels, size of the batch) from the `start`-th batch on."""
        for batch in itertools.islice(self.items, start, None):
            if not (isinstance(batch, tuple | list) and len(batch) >= 2):
                raise InputError(
                    f"{self.what}: a batch is {type(batch).__name__}; expected (images, labels)"
                )
            x, y = batch[0][rank::world], batch[1][rank::world]
            yield x, y, len(batch[1])


__all__ = ["LabelledBatches", "as_source"]
