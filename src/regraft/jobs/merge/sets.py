"""The data sets of two merged networks: their union, and small sets that stand for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from torch import Tensor

from regraft import streams
from regraft.config import Augmentation, DataConfig
from regraft.data import ImageSet, Splits, TensorLoader
from regraft.data.coreset import CoresetMethod, coreset
from regraft.errors import InputError
from regraft.generators import CondensedSet
from regraft.jobs.base import to_json
from regraft.jobs.data import load_once
from regraft.jobs.train import TrainJob

Surrogate = Literal["full", "condensed", "random", "herding"]


@dataclass(frozen=True, eq=False)
class Sets:
    """The data sets that two networks were trained on, each once."""

    splits: tuple[Splits, ...]
    device: torch.device
    seed: int

    @classmethod
    def of(cls, configs: Sequence[DataConfig], device: torch.device, seed: int) -> Sets:
        """Load them.

        Raises:
            InputError: Images that stay in their files, or sets that are normalised in two ways or
                have images of two forms: a merged network has one input.
        """
        splits, known = [], []
        for config in configs:
            if to_json(config) not in known:
                known.append(to_json(config))
                found = load_once(config)
                if not isinstance(found, Splits) or not isinstance(found.train, ImageSet):
                    raise InputError(f"data {config.name!r}: merging needs images in memory")
                if found.test is None:
                    raise InputError(f"data {config.name!r} has no test images to measure on")
                splits.append(found)
        first = splits[0]
        for other in splits[1:]:
            for what in ("mean", "std", "channels", "image_size", "num_classes"):
                one, two = getattr(first, what), getattr(other, what)
                if one != two:
                    raise InputError(
                        f"{what} of {first.name} is {one} and of {other.name} {two}: a merged network "
                        "has one input and one head; give both normalize='none' and one image_size"
                    )
        return cls(tuple(splits), device, seed)

    def loader(
        self,
        images: Any,
        *,
        batch_size: int = 500,
        shuffle: bool = False,
        augment: Augmentation = "none",
    ) -> TensorLoader:
        """Return batches of an `ImageSet` or a `CondensedSet`."""
        first = self.splits[0]
        options: Any = {
            "batch_size": batch_size,
            "mean": first.mean,
            "std": first.std,
            "shuffle": shuffle,
            "augment": augment,
            "seed": self.seed,
            "device": self.device,
        }
        if isinstance(images, CondensedSet):
            return images.loader(**options)
        return TensorLoader(images, **options)

    def each(self, split: str, limit: int | None = None) -> list[TensorLoader]:
        """Return for every set the batches of a split, of at most `limit` images drawn from it."""
        return [self.loader(_some(getattr(s, split), limit)) for s in self.splits]

    @property
    def validated(self) -> bool:
        """Whether all sets hold out validation images."""
        return all(s.validation is not None for s in self.splits)

    def union(self, split: str = "train", limit: int | None = None) -> ImageSet:
        """Return the images of all sets together, of at most `limit` from each."""
        parts: list[Any] = [_some(getattr(s, split), limit) for s in self.splits]
        return _joined(parts)

    def surrogate(
        self, kind: Surrogate, per_class: int, condensed: Sequence[Path] = ()
    ) -> ImageSet | CondensedSet:
        """Return what stands for the union: all of it, or `per_class` images a class and set.

        Args:
            kind: `full`, `random`, `herding`, or `condensed`.
            per_class: Images of each class and set.
            condensed: Of `condensed`, the file for each set.
        """
        if kind == "full":
            return self.union()
        if kind == "condensed":
            found = [CondensedSet.load(path) for path in condensed]
            names = [s.classes for s in self.splits]
            labels = [
                torch.tensor([own.index(c) for c in one.classes])[one.labels]
                for one, own in zip(found, names, strict=True)
            ]
            images = torch.cat([one.images for one in found])
            first = self.splits[0]
            return CondensedSet(
                images, torch.cat(labels), first.classes, first.mean, first.std, found[0].method
            )
        parts: list[Any] = [s.train for s in self.splits]
        return _joined([_chosen(part, kind, per_class, self.seed) for part in parts])


def present(images: ImageSet) -> tuple[ImageSet, Tensor]:
    """Return the images with the classes that occur numbered from 0, and which those are."""
    found = images.labels.unique()
    labels = torch.searchsorted(found, images.labels)
    return ImageSet(images.images, labels, len(found)), found


def parent_state(job: TrainJob, root: Path) -> dict[str, Tensor]:
    """Return the trained weights of a finished job.

    Raises:
        InputError: The job is not finished, or its file is damaged.
    """
    path = job.folder(root) / "model.safetensors"
    if not (job.folder(root) / "result.json").exists() or not path.exists():
        raise InputError(
            f"{path} is missing: a merge needs its trained parents, run them first (the recipe does)"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is damaged ({error}): remove its folder to train it again"
        ) from error


def _some(images: Any, limit: int | None) -> Any:
    if limit is None or limit >= len(images):
        return images
    order = streams.permutation(0, "merging/some", 0, len(images))
    return images.subset(order[:limit].sort().values)


def _chosen(images: ImageSet, method: CoresetMethod, per_class: int, seed: int) -> ImageSet:
    numbered, _ = present(images)
    return images.subset(coreset(numbered, per_class=per_class, method=method, seed=seed))


def _joined(parts: Sequence[ImageSet]) -> ImageSet:
    images = torch.cat([part.images for part in parts])
    return ImageSet(images, torch.cat([part.labels for part in parts]), parts[0].num_classes)
