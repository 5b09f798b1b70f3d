"""Images of a `SetConfig`, and batches of them for a number of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.config import SetConfig
from regraft.data import ImageSet, Splits, stratified_subset
from regraft.data.memory import in_memory
from regraft.data.views import Views
from regraft.errors import InputError
from regraft.jobs.data import load_once
from regraft.streams import Counter, permutation

MEAN, STD = 0.5, 0.5
"""How images are normalised for networks that start from a generator, whose moments nobody knows."""


def load_set(config: SetConfig, *, seed: int) -> tuple[ImageSet, tuple[str, ...]]:
    """Return the images of a config and the names of their classes.

    Args:
        config: Which images.
        seed: Seed of the choice of `size` images.

    Raises:
        InputError: No images in memory, labels in two groups, or more images than there are.
    """
    splits = load_once(config.data)
    if not isinstance(splits, Splits):
        raise InputError(f"data {config.data.name!r} is a graph: generators need images")
    images = splits.test if config.part == "test" else splits.train
    if images is None:
        raise InputError(f"data {config.data.name!r} has no test images")
    images = in_memory(images, f"data {config.data.name!r}: a generator")
    if config.part.endswith("half"):
        order = permutation(0, "set/halves", 0, len(images))
        half = len(images) // 2
        images = images.subset(order[:half] if config.part == "first_half" else order[half:])
    classes = splits.classes
    if config.groups:
        images = _grouped(images, config.groups)
        classes = tuple("+".join(splits.classes[c] for c in group) for group in config.groups)
    if config.size is not None:
        images = images.subset(stratified_subset(images.labels, config.size, seed))
    return images, classes


def target_set(config: SetConfig, *, seed: int) -> tuple[ImageSet, tuple[str, ...]]:
    """Return the labelled images of a target as `load_set` does.

    Raises:
        InputError: As there, or they are of fewer than two classes: there is nothing to tell apart.
    """
    images, classes = load_set(config, seed=seed)
    count = len(images.labels.unique())
    if count < 2:
        raise InputError(
            f"the target {config.data.name!r} has {len(images)} images of {count} class(es): expected at "
            "least two classes with images"
        )
    return images, classes


def _grouped(images: ImageSet, groups: tuple[tuple[int, ...], ...]) -> ImageSet:
    table = torch.full((images.num_classes,), -1)
    for new, group in enumerate(groups):
        for old in group:
            if not 0 <= old < images.num_classes or table[old] >= 0:
                raise InputError(f"groups: class {old} does not exist, or is in two of them")
            table[old] = new
    labels = table[images.labels]
    kept = (labels >= 0).nonzero().flatten()
    return ImageSet(images.images[kept], labels[kept], len(groups))


@dataclass(frozen=True, eq=False)
class StepBatches:
    """A number of batches from a small set, each image as often as any other; a `BatchSource`.

    Batch i holds images i * b to (i + 1) * b of an endless row of passes, each in a new order.

    Attributes:
        images: The images.
        steps: Batches of the one epoch.
        batch_size: Images of each.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        seed: Seed of the orders and views.
        views: Views of the images, or none.
    """

    images: ImageSet
    steps: int
    batch_size: int
    mean: Sequence[float]
    std: Sequence[float]
    seed: int
    views: Views | None = None

    def __len__(self) -> int:
        return self.steps

    def batches(
        self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield (images [b, C, H, W], labels [b], b)."""
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        for i in range(epoch * self.steps + start, (epoch + 1) * self.steps):
            rows = self._rows(i * self.batch_size)
            x = self.images.images[rows].float() / 255
            if self.views is not None:
                x = self.views(x, Counter(self.seed, "steps/views", i * self.batch_size))
            x, y = (x - mean) / std, self.images.labels[rows]
            yield x[rank::world], y[rank::world], self.batch_size

    def _rows(self, first: int) -> Tensor:
        count = len(self.images)
        at = torch.arange(first, first + self.batch_size)
        rows = torch.empty_like(at)
        for number in (at // count).unique().tolist():
            mine = at // count == number
            rows[mine] = permutation(self.seed, "steps/order", number, count)[at[mine] % count]
        return rows
