"""Batches whose order, share and augmentation depend on nothing but a seed and the epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from regraft import streams
from regraft.config import Augmentation
from regraft.errors import InputError

from .augment import augment, draw
from .images import ImageSet
from .lazy import FileSet, cores, refuse


class _Loader:
    """What both loaders share: the order of an epoch, its cut into batches, the finishing."""

    def __init__(
        self,
        source: ImageSet | FileSet,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        shuffle: bool,
        augment: Augmentation,
        seed: int,
        device: torch.device | str | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: expected at least 1")
        if len(source) == 0:
            raise InputError("the set to load batches from is empty: it needs at least one image")
        if not len(mean) == len(std) == source.channels:
            raise InputError(
                f"mean and std have {len(mean)} and {len(std)} values: "
                f"expected one for each of the {source.channels} channel(s)"
            )
        # An unknown augmentation is refused here, not when the first batch is asked for.
        draw(augment, 0, image_size=source.image_size, seed=seed, epoch=0)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.augment: Augmentation = augment
        self.device = torch.device(device) if device is not None else torch.device("cpu")
        self._size = len(source)
        self._image_size = source.image_size
        scale = torch.tensor(std, dtype=torch.float64).mul_(255).reciprocal_()
        shift = torch.tensor(mean, dtype=torch.float64).mul_(-255).mul_(scale)
        self._scale = scale.float().view(1, -1, 1, 1).to(self.device)
        self._shift = shift.float().view(1, -1, 1, 1).to(self.device)

    def __len__(self) -> int:
        return max(math.ceil(self._size / self.batch_size) - self._lonely(), 1)

    def _lonely(self) -> bool:
        # Batch statistics of a single image are no statistics: it joins the batch before it.
        return self._size % self.batch_size == 1 and self._size > self.batch_size > 1

    def order(self, epoch: int) -> Tensor:
        """Return the indices of the images in the order of `epoch`, int64 [n]."""
        if not self.shuffle:
            return torch.arange(self._size)
        return streams.permutation(self.seed, "order", epoch, self._size)

    def _shares(
        self, epoch: int, start: int, rank: int, world: int
    ) -> tuple[list[Tensor], list[int]]:
        if not 0 <= start <= len(self):
            raise InputError(
                f"start={start}: an epoch has {len(self)} batches; expected 0 to {len(self)}"
            )
        if not 0 <= rank < world:
            raise InputError(f"rank={rank} of world={world}: expected 0 to {world - 1}")
        if start == len(self):
            return [], []
        # `split` on the rest keeps the cuts where they are in the whole epoch.
        rest = self.order(epoch)[start * self.batch_size :].split(self.batch_size)
        rest = [rows for rows in rest if len(rows)]
        if self._lonely() and len(rest) > 1:
            rest[-2:] = [torch.cat(rest[-2:])]
        return [rows[rank::world] for rows in rest], [len(rows) for rows in rest]

    def _normalised(self, images: Tensor) -> Tensor:
        return images.float().mul_(self._scale).add_(self._shift)


class TensorLoader(_Loader):
    """Batches of a set that lies in memory as one tensor; follows `regraft.protocols.BatchSource`.

    Pixels stay uint8 on the device and become float32 (x / 255 - mean) / std batch by batch. The
    last, smaller batch of an epoch is kept; a single image joins the batch before it. Rank r of w
    takes rows r, r + w, ... of each global
    batch, which may be none of them when the last batch is smaller than w.

    Args:
        image_set: The images.
        batch_size: Global batch, over all processes.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        shuffle: A new order every epoch instead of the order of the set.
        augment: What is done to each image; see `regraft.data.draw`.
        seed: Seed of order and augmentation.
        device: Where the images are kept and the batches made.

    Raises:
        InputError: An empty set, `batch_size` below 1, a mean or std for another number of
            channels, or an unknown augmentation.
    """

    def __init__(self, image_set: ImageSet, **options: Any) -> None:
        super().__init__(image_set, **options)
        self.image_set = image_set.to(self.device)

    def batches(
        self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield (images float32 [b, C, H, W], labels int64 [b], size of the global batch)."""
        shares, sizes = self._shares(epoch, start, rank, world)
        draws = draw(
            self.augment, self._size, image_size=self._image_size, seed=self.seed, epoch=epoch
        ).to(self.device)
        for share, size in zip(shares, sizes, strict=True):
            rows = share.to(self.device)
            images = augment(self.image_set.images[rows], draws[rows])
            yield self._normalised(images), self.image_set.labels[rows], size


class FolderLoader(_Loader):
    """Batches of files that are decoded by worker processes as they are needed.

    The contract, the arguments and the results are those of `TensorLoader`; augmentation and
    normalisation happen on the device.

    Args:
        file_set: The image files.
        workers: Worker processes; 0 decodes in this one, and without a value it is one for each
            processor core, 8 at most.

    Raises:
        InputError: As `TensorLoader`; while loading, when a file cannot be decoded.
    """

    def __init__(self, file_set: FileSet, *, workers: int | None = None, **options: Any) -> None:
        super().__init__(file_set, **options)
        self.file_set = file_set
        self.workers = cores() if workers is None else workers

    def batches(
        self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield (images float32 [b, C, H, W], labels int64 [b], size of the global batch)."""
        shares, sizes = self._shares(epoch, start, rank, world)
        draws = draw(
            self.augment, self._size, image_size=self._image_size, seed=self.seed, epoch=epoch
        )
        on_gpu = self.device.type == "cuda"
        loaded = DataLoader(
            cast("Dataset", _Decoded(self.file_set)),
            batch_size=None,
            sampler=[share.tolist() for share in shares],
            num_workers=self.workers,
            pin_memory=on_gpu,
            # Without its own generator a DataLoader draws from torch's global one.
            generator=torch.Generator(),
        )
        for (images, reasons), share, size in zip(loaded, shares, sizes, strict=True):
            refuse(reasons)
            moved = images.to(self.device, non_blocking=on_gpu)
            finished = augment(moved, draws[share].to(self.device))
            yield self._normalised(finished), self.file_set.labels[share].to(self.device), size


@dataclass(frozen=True)
class _Decoded:
    """A map-style data set whose keys are whole batches.

    Failures travel as values: an exception that crosses from a worker arrives as a traceback.
    """

    files: FileSet

    def __getitem__(self, rows: list[int]) -> tuple[Tensor, list[str]]:
        side = self.files.image_size
        images = torch.empty(len(rows), self.files.channels, side, side, dtype=torch.uint8)
        reasons = []
        for position, row in enumerate(rows):
            try:
                images[position] = self.files[row]
            except InputError as error:
                reasons.append(str(error))
        return images, reasons
