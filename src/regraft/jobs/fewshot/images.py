"""The images that episodes are drawn from: whole sets, parted by class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from regraft import streams
from regraft.config import DataConfig
from regraft.data import ImageSet, Splits, load
from regraft.data.channels import with_channels
from regraft.errors import InputError
from regraft.jobs.data import load_once


@dataclass(frozen=True, eq=False)
class ClassImages:
    """All images of some classes.

    Attributes:
        images: Their pixels and classes.
        classes: Names of all classes, by label.
        mean: Mean of each channel by which they are normalised.
        std: Standard deviation of each channel.
    """

    images: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def of(self, labels: torch.Tensor) -> ClassImages:
        """Return the images of some classes; labels and names stay as they are."""
        rows = torch.isin(self.images.labels, labels).nonzero()[:, 0]
        return replace(self, images=self.images.subset(rows))


def class_images(config: DataConfig, *, channels: int | None = None) -> ClassImages:
    """Return all images of a set, whatever part of it they are in.

    Args:
        config: Which set; nothing is held out of it.
        channels: Bring them to so many.
    """
    splits = load_once(replace(config, validation=0.0))
    if not hasattr(splits, "train"):
        raise InputError(f"{config.name} is a graph: episodes are drawn of images")
    if channels is not None:
        splits = with_channels(splits, channels)  # pyrefly: ignore
    return _joined(splits)  # pyrefly: ignore


def _joined(splits: Splits) -> ClassImages:
    parts = [p for p in (splits.train, splits.validation, splits.test) if p is not None]
    whole = ImageSet(
        torch.cat([part.decoded() for part in parts]),
        torch.cat([part.labels for part in parts]),
        splits.num_classes,
    )
    return ClassImages(whole, splits.classes, splits.mean, splits.std)


def parted(images: ClassImages, share: float, seed: int) -> tuple[ClassImages, ClassImages]:
    """Return the images of the classes to train on, and of those held out.

    Args:
        images: All of them.
        share: Share of the classes that is held out, at least one of them.
        seed: Seed of the draw.
    """
    kinds = images.images.labels.unique()
    order = streams.permutation(seed, "held-out classes", 0, len(kinds))
    n = max(1, round(share * len(kinds)))
    return images.of(kinds[order[n:]]), images.of(kinds[order[:n]])


@lru_cache(maxsize=8)
def _loaded(
    name: str, root: str | None, download: bool, normalize: Any, size: int, channels: int
) -> ClassImages:
    config = DataConfig(
        name=name, root=root, download=download, image_size=size, normalize=normalize
    )
    splits = with_channels(load(replace(config, validation=0.0)), channels)
    # New classes are new whatever part they are in; of a set with a test part that is enough.
    if splits.test is not None and name not in _WHOLE:
        splits = replace(splits, train=splits.test, test=None)
    return _joined(splits)


_WHOLE = ("omniglot", "omniglot_evaluation", "digits")
"""Sets whose test part alone has too few images of a class."""


def domain(name: str, like: DataConfig, *, size: int, channels: int) -> ClassImages:
    """Return the images of another set as a network takes them: of its size and channels.

    They are normalised as `like` is: with its own moments, or not at all. The last eight are kept, for
    the runs of a recipe that follow each other.
    """
    return _loaded(name, like.root, like.download, like.normalize, size, channels)
