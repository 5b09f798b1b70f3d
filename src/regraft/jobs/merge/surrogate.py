"""The labelled images that straight-through matching learns from: all, a few, or condensed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft import generators
from regraft.config import Augmentation
from regraft.data.coreset import coreset
from regraft.errors import InputError
from regraft.generators import CondensedSet
from regraft.models import build
from regraft.protocols import BatchSource

from .config import AlignConfig
from .data import Data, distinct, present
from .models import Models
from .union import Together

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True, eq=False)
class Relabelled:
    """A batch source whose labels are exchanged: class i becomes `rows[i]`."""

    source: BatchSource
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.source)

    def batches(
        self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield the source's batches with the exchanged labels."""
        rows = torch.tensor(self.rows)
        for x, y, n in self.source.batches(epoch, start=start, rank=rank, world=world):
            yield x, rows.to(y.device)[y], n


def surrogate(
    config: AlignConfig, models: Models, folder: Path, progress: Progress | None = None
) -> tuple[Together, list[dict[str, Any]]]:
    """Return the union of what stands for the data sets, and what it is, for the card.

    All training images are augmented as their data set says; those that were condensed or chosen are
    taken as they are.

    Args:
        config: The settings.
        models: The models and data.
        folder: Where condensed sets are made that are not given.
        progress: Called while they are.

    Raises:
        InputError: A class with too few images, or a condensed set of other data.
    """
    sources: list[BatchSource] = []
    sizes: list[int] = []
    record = []
    for i, data in enumerate(_distinct(models)):
        if config.ste.surrogate == "condensed":
            source, images = _condensed(config, models, data, i, folder, progress)
        else:
            augment = config.data[min(_first(models, data), len(config.data) - 1)].augment
            source, images = _real(config, models, data, augment)
        sources.append(source)
        sizes.append(images)
        record.append({"data": data.splits.name, "images": images})
    return Together(sources, sizes, config.ste.optim.batch_size), record


def held_out(config: AlignConfig, models: Models) -> Together | None:
    """Return validation images of all data sets to compare candidates on, None where one has none."""
    parts, sizes = [], []
    limit, seed = config.statistics_images, config.runtime.seed
    for data in _distinct(models):
        images = data.splits.validation
        if images is None:
            return None
        parts.append(data.batches(images, models.device, limit=limit, seed=seed))
        sizes.append(min(limit, len(images)))
    return Together(parts, sizes, 500)


def _distinct(models: Models) -> list[Data]:
    return distinct(models.data, lambda data: data.form)


def _first(models: Models, data: Data) -> int:
    return next(i for i, other in enumerate(models.data) if other is data)


def _real(
    config: AlignConfig, models: Models, data: Data, augment: Augmentation
) -> tuple[BatchSource, int]:
    settings, seed = config.ste, config.runtime.seed
    images = data.splits.train
    if settings.surrogate not in ("full", "condensed"):
        numbered, _ = present(images)
        images = images.subset(
            coreset(numbered, per_class=settings.per_class, method=settings.surrogate, seed=seed)
        )
        augment = "none"
    source = data.batches(
        images,
        models.device,
        size=settings.optim.batch_size,
        seed=seed,
        shuffle=True,
        augment=augment,
    )
    return source, len(images)


def _condensed(
    config: AlignConfig, models: Models, data: Data, i: int, folder: Path, progress: Progress | None
) -> tuple[BatchSource, int]:
    if config.ste.condensed:
        images = _read(config.ste.condensed, data, i)
    else:
        images = _make(config, models, data, i, folder, progress)
    loader = images.loader(
        batch_size=config.ste.optim.batch_size,
        seed=config.runtime.seed,
        mean=data.mean,
        std=data.std,
        device=models.device,
    )
    rows = tuple(data.rows[data.splits.classes.index(name)] for name in images.classes)
    return Relabelled(loader, rows), len(images)


def _read(files: tuple[Path, ...], data: Data, i: int) -> CondensedSet:
    if i >= len(files):
        raise InputError(
            f"--condensed is given {len(files)} time(s): give it once for each data set, in the order "
            "of --data"
        )
    path, splits = files[i], data.splits
    images = CondensedSet.load(path)
    form, own = (images.channels, images.image_size), (splits.channels, splits.image_size)
    if form != own or not set(images.classes) <= set(splits.classes):
        raise InputError(
            f"--condensed {path} is not of data {splits.name}: it has {images.num_classes} classes of "
            f"{images.channels}x{images.image_size}x{images.image_size}, expected the set's own"
        )
    return images


def _make(
    config: AlignConfig, models: Models, data: Data, i: int, folder: Path, progress: Progress | None
) -> CondensedSet:
    """Condense in the folder of the run, so that an interrupted run goes on."""
    file = folder / f"condensed-{i + 1}.safetensors"
    unfinished = folder / f"condensing-{i + 1}.safetensors"
    if file.exists():
        return CondensedSet.load(file)
    network = models.config
    if network is None:
        raise InputError("--surrogate condensed needs a network: name it with --model")
    train, classes = present(data.splits.train)
    shape: dict[str, Any] = {**models.shape, "num_classes": len(classes)}
    images = generators.condense(
        train,
        lambda: build(network, **shape),
        per_class=config.ste.per_class,
        mean=data.mean,
        std=data.std,
        classes=[data.splits.classes[c] for c in classes.tolist()],
        seed=config.runtime.seed,
        device=models.device,
        checkpoint=unfinished,
        progress=progress,
    )
    images.save(file)
    unfinished.unlink(missing_ok=True)
    return images
