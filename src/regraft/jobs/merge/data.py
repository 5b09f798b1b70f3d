"""The data sets that models are aligned, repaired and measured with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .alignment import Alignment
from .labels import BY_NAME, Labels, label_rows

if TYPE_CHECKING:
    from regraft.data import FileSet, ImageSet, Splits
    from regraft.protocols import BatchSource

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

    def batches(
        self,
        images: ImageSet | FileSet,
        device: Any,
        *,
        size: int = _EVALUATION_BATCH,
        limit: int | None = None,
        seed: int = 0,
        shuffle: bool = False,
    ) -> BatchSource:
        """Return batches of images of this set, of at most `limit` drawn from them."""
        from regraft import streams
        from regraft.data import FolderLoader, ImageSet, TensorLoader

        if limit is not None and limit < len(images):
            order = streams.permutation(seed, "merge.subset", 0, len(images))
            images = images.subset(order[:limit].sort().values)
        loader: Any = TensorLoader if isinstance(images, ImageSet) else FolderLoader
        return loader(
            self.in_rows(images),
            batch_size=size,
            mean=self.mean,
            std=self.std,
            shuffle=shuffle,
            augment="none",
            seed=seed,
            device=device,
        )

    def in_rows(self, images: ImageSet | FileSet) -> ImageSet | FileSet:
        """Return images whose labels are rows of the classifier."""
        import torch

        labels = torch.tensor(self.rows)[images.labels.cpu()]
        most = max(self.rows) + 1
        return replace(images, labels=labels.to(images.labels.device), num_classes=most)


def load_all(asked: Alignment, about: list[dict[str, Any]]) -> list[Splits]:
    """Load the data sets that were asked for.

    Args:
        asked: The options.
        about: What each model's checkpoint says of itself.

    Raises:
        InputError: A set that cannot be loaded, or sets of images that are not of one form.
    """
    from regraft.config import DataConfig
    from regraft.data import load
    from regraft.errors import InputError

    found: dict[str, Splits] = {}
    for i, name in enumerate(asked.data):
        if name not in found:
            found[name] = load(
                DataConfig(
                    name=name,
                    root=asked.data_root,
                    download=asked.download,
                    unreadable=asked.unreadable,
                    image_size=asked.image_size or said_size(about[i]).get("image_size"),
                )
            )
    splits = [found[name] for name in asked.data]
    for name, other in zip(asked.data, splits, strict=True):
        for what, one, two in (
            ("channel(s)", splits[0].channels, other.channels),
            ("pixels a side", splits[0].image_size, other.image_size),
        ):
            if one != two:
                raise InputError(
                    f"data {asked.data[0]} has images of {one} {what} and {name} of {two}: expected one "
                    "form (--image-size resizes them)"
                )
    if splits and asked.channels not in (None, splits[0].channels):
        raise InputError(
            f"--channels {asked.channels}: data {asked.data[0]} has images of {splits[0].channels}"
        )
    return splits


def said_size(about: dict[str, Any]) -> dict[str, int]:
    """Return what a checkpoint says of its images: channels and image size, where it does."""
    shape = about.get("input")
    if not isinstance(shape, dict):
        return {}
    return {k: v for k, v in shape.items() if k in ("channels", "image_size") and type(v) is int}


def prepared(
    asked: Alignment,
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
        asked: The options.
        splits: The data sets.
        about: What each model's checkpoint says of itself.
        names: Names of each model's classes; an empty list where they are not known.
        classes: The classes of a union, if there is one.
        count: Rows of the classifier.
        labels: How classes find their rows where names do not tell.

    Raises:
        InputError: Labels that do not fit the classifier, or a mean for other channels.
    """
    from regraft.errors import InputError

    found = []
    for i, (name, own) in enumerate(zip(asked.data, splits, strict=True)):
        strange = next((c for c in own.classes if classes and c not in classes), None)
        if classes and strange is not None:
            raise InputError(
                f"data {name} has the class {strange!r}, which no model knows: they know "
                f"{', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
            )
        known = classes or (names[i] if names else [])
        rows = label_rows(name, own.classes, known, count, labels=labels)
        found.append(_seen(asked, name, own, about[i], rows))
    return found


def prepared_apart(
    asked: Alignment,
    splits: list[Splits],
    about: list[dict[str, Any]],
    names: list[list[str]],
    counts: list[int],
) -> list[Data]:
    """Return for each model the data set that belongs to it as it sees it, with its own classifier.

    Args:
        asked: The options.
        splits: The data sets: one for all models, or one for each.
        about: What each model's checkpoint says of itself.
        names: Names of each model's classes; an empty list where they are not known.
        counts: Rows of each model's classifier.

    Raises:
        InputError: As `prepared`.
    """
    found = []
    for i, (known, count) in enumerate(zip(names, counts, strict=True)):
        at = i if len(splits) > 1 else 0
        own, name = splits[at], asked.data[at]
        whose = f"the classifier of {asked.checkpoints[i]}"
        rows = label_rows(name, own.classes, known, count, whose=whose)
        found.append(_seen(asked, name, own, about[i], rows))
    return found


def distinct(sets: Iterable[Data], form: Callable[[Data], object]) -> list[Data]:
    """Return the first of the data sets of each form, in their order."""
    found: dict[object, Data] = {}
    for data in sets:
        found.setdefault(form(data), data)
    return list(found.values())


def normalised_notes(about: list[dict[str, Any]]) -> list[str]:
    """Return what to say where models with one classifier were trained on other images than each other."""
    said = {(str(one.get("mean")), str(one.get("std"))) for one in about}
    if len(said) == 1:
        return []
    return [
        "the models say that they were trained on images normalised differently; all are given them "
        "alike, as the model that a data set goes with says (--mean and --std say otherwise)"
    ]


def _seen(
    asked: Alignment, name: str, own: Splits, about: dict[str, Any], rows: tuple[int, ...]
) -> Data:
    from regraft.errors import InputError

    mean, std = _moments(asked, own, about)
    if len(mean) != own.channels:
        raise InputError(
            f"--mean and --std have {len(mean)} number(s) and data {name} has {own.channels} "
            "channel(s): give one for each"
        )
    return Data(own, mean, std, rows)


def _moments(
    asked: Alignment, splits: Splits, about: dict[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if asked.mean:
        return tuple(asked.mean), tuple(asked.std)
    said = [about.get(key) for key in ("mean", "std")]
    if all(isinstance(v, list) and len(v) == splits.channels for v in said):
        return tuple(map(float, said[0] or ())), tuple(map(float, said[1] or ()))
    return splits.mean, splits.std
