"""Minibatches of several data sets at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from regraft.protocols import BatchSource


class Together:
    """Minibatches of the union of several sources; a `BatchSource`.

    Each batch has images of all of them in proportion, so that batch statistics are the union's.
    Every set is in every step, as a minibatch drawn from the union would have it on average, with
    less variance. There are as many as the union makes of `batch_size`, of sizes that differ by one
    at most, and each image comes once an epoch in its source's order. Of one source it is that
    source.

    Args:
        sources: The sources.
        sizes: Number of images of each.
        batch_size: Images of a minibatch, at most.
    """

    def __init__(
        self, sources: Sequence[BatchSource], sizes: Sequence[int], batch_size: int
    ) -> None:
        self.sources = list(sources)
        self.images = sum(sizes)
        self._steps = -(-self.images // batch_size)
        total, steps = sum(sizes), len(self)
        # Spread over the epoch, image j of n comes at (j + 1/2) / n.
        places = torch.cat([(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in sizes])
        owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        owners = owners[places.argsort(stable=True)]
        step = torch.arange(total) * steps // total
        counts = torch.bincount(step * len(sizes) + owners, minlength=steps * len(sizes))
        self._counts: list[list[int]] = counts.view(steps, len(sizes)).tolist()

    def __len__(self) -> int:
        return len(self.sources[0]) if len(self.sources) == 1 else self._steps

    def batches(
        self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield the batches of an epoch, each source's images behind those of the one before it."""
        if len(self.sources) == 1:
            yield from self.sources[0].batches(epoch, start=start, rank=rank, world=world)
            return
        readers = [_Reader(source.batches(epoch)) for source in self.sources]
        for step, counts in enumerate(self._counts):
            parts = [p for r, n in zip(readers, counts, strict=True) for p in r.take(n)]
            if step >= start:
                x, y = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
                yield x[rank::world], y[rank::world], len(x)


class _Reader:
    """Images of a source in its order, however many at a time."""

    def __init__(self, batches: Iterator[tuple[Tensor, Tensor, int]]) -> None:
        self._batches = batches
        self._left: tuple[Tensor, Tensor] | None = None

    def take(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return the next `count` images and labels, in pieces."""
        pieces = []
        while count:
            x, y = self._left or next(self._batches)[:2]
            pieces.append((x[:count], y[:count]))
            self._left = (x[count:], y[count:]) if len(x) > count else None
            count -= len(pieces[-1][0])
        return pieces
