"""The labelled images that straight-through matching learns from: all, a few, or condensed ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regraft.errors import InputError
from regraft.jobs.progress import Bar

from .alignment import Alignment
from .data import Data, distinct
from .gathered import Gathered
from .union import Together

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.generators import CondensedSet
    from regraft.protocols import BatchSource


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
        import torch

        rows = torch.tensor(self.rows)
        for x, y, n in self.source.batches(epoch, start=start, rank=rank, world=world):
            yield x, rows.to(y.device)[y], n


def surrogates(asked: Alignment, given: Gathered) -> tuple[Together, list[dict[str, Any]]]:
    """Return the union of what stands for the data sets, and what it is, for the card.

    Raises:
        InputError: A class with too few images, or a condensed set of other data.
    """
    sources: list[BatchSource] = []
    sizes: list[int] = []
    record = []
    for i, data in enumerate(_distinct(given)):
        source, images = _surrogate(asked, given, data, i)
        sources.append(source)
        sizes.append(images)
        record.append({"data": data.splits.name, "images": images})
    return Together(sources, sizes), record


def held_out(asked: Alignment, given: Gathered) -> Together | None:
    """Return validation images of all data sets to compare candidates on, None where one has none."""
    parts, sizes = [], []
    for data in _distinct(given):
        images = data.splits.validation
        if images is None:
            return None
        parts.append(data.batches(images, given.device, limit=asked.samples, seed=asked.seed))
        sizes.append(min(asked.samples, len(images)))
    return Together(parts, sizes)


def _distinct(given: Gathered) -> list[Data]:
    return distinct(given.data, lambda data: data.form)


def _surrogate(asked: Alignment, given: Gathered, data: Data, i: int) -> tuple[BatchSource, int]:
    from regraft.data.coreset import coreset

    if asked.surrogate == "condensed":
        return _condensed(asked, given, data, i)
    images = data.splits.train
    if asked.surrogate != "full":
        chosen = coreset(images, per_class=asked.per_class, method=asked.surrogate, seed=asked.seed)
        images = images.subset(chosen)
    source = data.batches(
        images, given.device, size=asked.batch_size, seed=asked.seed, shuffle=True
    )
    return source, len(images)


def _condensed(asked: Alignment, given: Gathered, data: Data, i: int) -> tuple[BatchSource, int]:
    found = _read(asked, data, i) if asked.condensed else _make(asked, given, data, i)
    loader = found.loader(
        batch_size=asked.batch_size,
        seed=asked.seed,
        mean=data.mean,
        std=data.std,
        device=given.device,
    )
    return Relabelled(loader, data.rows), len(found)


def _read(asked: Alignment, data: Data, i: int) -> CondensedSet:
    from regraft.generators import CondensedSet

    path = asked.condensed[i] if i < len(asked.condensed) else None
    if path is None:
        raise InputError(
            f"--condensed is given {len(asked.condensed)} time(s): give it once for each data set, in "
            "the order of --data"
        )
    found = CondensedSet.load(path)
    form = (found.channels, found.image_size, found.classes)
    own = (data.splits.channels, data.splits.image_size, data.splits.classes)
    if form != own:
        raise InputError(
            f"--condensed {path} is not of data {data.splits.name}: it has {found.num_classes} classes "
            f"of {found.channels}x{found.image_size}x{found.image_size}, expected the set's own"
        )
    return found


def _make(asked: Alignment, given: Gathered, data: Data, i: int) -> CondensedSet:
    """Condense in the folder of the run, so that an interrupted run goes on."""
    from regraft.generators import CondensedSet, condense
    from regraft.models import build

    file = asked.out / f"condensed-{i + 1}.safetensors"
    unfinished = asked.out / f"condensing-{i + 1}.safetensors"
    if file.exists():
        return CondensedSet.load(file)
    config = given.config
    if config is None:
        raise InputError("--surrogate condensed needs a network: name it with --model")
    shape: dict[str, Any] = {**given.shape, "num_classes": data.splits.num_classes}
    with Bar(
        enabled=not asked.json, noun=f"condensing {data.splits.name}", describe=lambda row: ""
    ) as bar:
        found = condense(
            data.splits.train,
            lambda: build(config, **shape),
            per_class=asked.per_class,
            mean=data.mean,
            std=data.std,
            classes=data.splits.classes,
            seed=asked.seed,
            device=given.device,
            checkpoint=unfinished,
            progress=bar.update,
        )
    found.save(file)
    unfinished.unlink(missing_ok=True)
    return found
