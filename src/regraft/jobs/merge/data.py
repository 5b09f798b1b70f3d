"""The data sets that models are aligned, repaired and measured with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from regraft import data as sets
from regraft import streams
from regraft.config import Augmentation, digest
from regraft.data import FileSet, ImageSet, Splits
from regraft.data.load import folder_of
from regraft.data.side import side_of
from regraft.errors import InputError, few
from regraft.machine import expanded
from regraft.protocols import BatchSource

from .config import AlignConfig
from .labels import BY_NAME, Labels, label_rows

_EVALUATION_BATCH = 500


@dataclass(frozen=True, eq=False)
class Data:
    """One data set as the models see it: normalised, its labels rows of the classifier.

    Attributes:
        splits: The data set.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        rows: Row of the classifier of each class.
    """

    splits: Splits
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rows: tuple[int, ...]

    @property
    def form(self) -> tuple[Any, ...]:
        """What two must have in common to give the same batches."""
        return id(self.splits), self.rows, self.mean, self.std

    @property
    def images(self) -> tuple[Any, ...]:
        """What two must have in common to give the same images, whatever the labels."""
        return id(self.splits), self.mean, self.std

    @property
    def tested_on(self) -> str:
        """Name of the split that scores are measured on."""
        parts = ("test", "validation")
        return next((p for p in parts if getattr(self.splits, p) is not None), "train")

    @property
    def test(self) -> ImageSet | FileSet:
        """The images that scores are measured on."""
        return getattr(self.splits, self.tested_on)

    def part(self, split: str) -> ImageSet | FileSet:
        """Return the images of `test`, or those held out for `validation`."""
        return self.test if split == "test" else getattr(self.splits, split)

    def batches(
        self,
        images: ImageSet | FileSet,
        device: Any,
        *,
        size: int = _EVALUATION_BATCH,
        limit: int | None = None,
        seed: int = 0,
        shuffle: bool = False,
        augment: Augmentation = "none",
    ) -> BatchSource:
        """Return batches of images of this set, of at most `limit` drawn from them."""
        if limit is not None and limit < len(images):
            order = streams.permutation(seed, "merge.subset", 0, len(images))
            images = images.subset(order[:limit].sort().values)
        return sets.batches(
            self.in_rows(images),
            batch_size=size,
            mean=self.mean,
            std=self.std,
            shuffle=shuffle,
            augment=augment,
            seed=seed,
            device=device,
        )

    def in_rows(self, images: ImageSet | FileSet) -> ImageSet | FileSet:
        """Return images whose labels are rows of the classifier."""
        labels = torch.tensor(self.rows)[images.labels.cpu()]
        most = max(self.rows) + 1
        return replace(images, labels=labels.to(images.labels.device), num_classes=most)


def load_all(config: AlignConfig, about: list[dict[str, Any]]) -> tuple[list[Splits], list[str]]:
    """Load the data sets, each once, and say which images are resized.

    Images of a folder are read at the size that is asked for, else at that of the checkpoint, else at
    their own where they agree.

    Args:
        config: The settings.
        about: What each model's checkpoint says of itself.

    Raises:
        InputError: A set that cannot be loaded.
    """
    loaded: dict[str, Splits] = {}
    splits: list[Splits] = []
    notes: list[str] = []
    for i, data in enumerate(config.data):
        said = said_size(about[i])
        size = data.image_size or config.image_size or said.get("image_size")
        key = digest(data)
        if key not in loaded:
            if data.name not in sets.known_names():
                size, note = side_of(expanded(folder_of(data)), size)
                notes += [note] if note else []
            loaded[key] = sets.load(replace(data, image_size=size))
        channels = data.channels or config.channels or said.get("channels")
        if {channels, loaded[key].channels} == {1, 3}:  # grey pictures are read with three channels
            loaded[key] = sets.with_channels(loaded[key], channels or 1)
        splits.append(loaded[key])
    return splits, notes


def check_one_form(config: AlignConfig, splits: Sequence[Splits]) -> None:
    """Refuse sets whose images no single network could be shown.

    Raises:
        InputError: They differ in channels or size, or from --channels.
    """
    for data, other in zip(config.data, splits, strict=True):
        for what, one, two in (
            ("channel(s)", splits[0].channels, other.channels),
            ("pixels a side", splits[0].image_size, other.image_size),
        ):
            if one != two:
                raise InputError(
                    f"data {config.data[0].name} has images of {one} {what} and {data.name} of {two}: "
                    "expected one form (--image-size resizes them)"
                )
    if splits and config.channels not in (None, splits[0].channels):
        raise InputError(
            f"--channels {config.channels}: data {config.data[0].name} has images of "
            f"{splits[0].channels}"
        )


def said_size(about: dict[str, Any]) -> dict[str, int]:
    """Return what a checkpoint says of its images: channels and image size, where it does."""
    shape = about.get("input")
    if not isinstance(shape, dict):
        return {}
    return {k: v for k, v in shape.items() if k in ("channels", "image_size") and type(v) is int}


def prepared(
    config: AlignConfig,
    splits: list[Splits],
    about: list[dict[str, Any]],
    names: list[list[str]] | None,
    classes: list[str] | None,
    count: int,
    *,
    labels: Labels = BY_NAME,
) -> list[Data]:
    """Return the data sets with what their images and labels must go through.

    Each is seen as by the first model, or as by the model in its place where there are several. With
    the classes of a union all of its own must be among them.

    Args:
        config: The settings.
        splits: The data sets.
        about: What each model's checkpoint says of itself.
        names: Names of each model's classes; an empty list where they are not known.
        classes: The classes of a union, if there is one.
        count: Rows of the classifier.
        labels: How classes find their rows where names do not tell.

    Raises:
        InputError: Labels that do not fit the classifier, or a mean for other channels.
    """
    ready = []
    for i, (name, own) in enumerate(zip((data.name for data in config.data), splits, strict=True)):
        strange = next((c for c in own.classes if classes and c not in classes), None)
        if classes and strange is not None:
            raise InputError(
                f"data {name} has the class {strange!r}, which no model knows: they know "
                f"{few(classes, 10)}"
            )
        known = classes or (names[i] if names else [])
        rows = label_rows(name, own.classes, known, count, labels=labels)
        ready.append(_as_seen_by(config, name, own, about[i], rows))
    return ready


def prepared_apart(
    config: AlignConfig,
    splits: list[Splits],
    about: list[dict[str, Any]],
    names: list[list[str]],
    counts: list[int],
) -> list[Data]:
    """Return for each model the data set that belongs to it as it sees it, with its own classifier.

    Args:
        config: The settings.
        splits: The data sets: one for all models, or one for each.
        about: What each model's checkpoint says of itself.
        names: Names of each model's classes; an empty list where they are not known.
        counts: Rows of each model's classifier.

    Raises:
        InputError: As `prepared`.
    """
    ready = []
    for i, (known, count) in enumerate(zip(names, counts, strict=True)):
        at = i if len(splits) > 1 else 0
        own, name = splits[at], config.data[at].name
        whose = f"the classifier of {config.checkpoints[i]}"
        rows = label_rows(name, own.classes, known, count, whose=whose)
        ready.append(_as_seen_by(config, name, own, about[i], rows))
    return ready


def present(images: ImageSet | FileSet) -> tuple[ImageSet | FileSet, torch.Tensor]:
    """Return the images with the classes that occur numbered from 0, and which those are."""
    classes = images.labels.unique()
    labels = torch.searchsorted(classes, images.labels)
    return replace(images, labels=labels, num_classes=len(classes)), classes


def distinct(sets: Iterable[Data], form: Callable[[Data], object]) -> list[Data]:
    """Return the first of the data sets of each form, in their order."""
    by_form: dict[object, Data] = {}
    for data in sets:
        by_form.setdefault(form(data), data)
    return list(by_form.values())


def normalised_notes(about: list[dict[str, Any]]) -> list[str]:
    """Return what to say where models with one classifier were trained on other images than each other."""
    said = {(str(one.get("mean")), str(one.get("std"))) for one in about}
    if len(said) == 1:
        return []
    return [
        "the models say that they were trained on images normalised differently; all are given them "
        "alike, as the model that a data set goes with says (--mean and --std say otherwise)"
    ]


def _as_seen_by(
    config: AlignConfig, name: str, own: Splits, about: dict[str, Any], rows: tuple[int, ...]
) -> Data:
    mean, std = _moments(config, own, about)
    if len(mean) != own.channels:
        raise InputError(
            f"--mean and --std have {len(mean)} number(s) and data {name} has {own.channels} "
            "channel(s): give one for each"
        )
    return Data(own, mean, std, rows)


def _moments(
    config: AlignConfig, splits: Splits, about: dict[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if config.mean:
        return tuple(config.mean), tuple(config.std)
    said = [about.get(key) for key in ("mean", "std")]
    if all(isinstance(v, list) and len(v) == splits.channels for v in said):
        return tuple(map(float, said[0] or ())), tuple(map(float, said[1] or ()))
    return splits.mean, splits.std
