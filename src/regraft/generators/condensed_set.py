"""A condensed set: a handful of synthetic images a class, with the file that holds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from regraft.config import Augmentation
from regraft.data import ImageSet, TensorLoader
from regraft.data.images import LabelledPixels
from regraft.errors import InputError
from regraft.files import parse_json, read_tensors, reading, write_tensors

SCHEMA = 1
_KIND = "condensed set"


@dataclass(frozen=True, eq=False)
class CondensedSet(LabelledPixels):
    """Synthetic images that stand for a whole data set.

    Pixels are in the scale in which real ones lie in [0, 1]. They are optimised freely and stored
    as they are: **values may leave [0, 1]**, and clipping them would change what a network learns;
    `to_image_set` and `clipped` do so for eyes and for other tools.

    Args:
        images: float32 [K n, C, H, W], n of every class.
        labels: Class of every image, int64 [K n].
        classes: Name of every class.
        mean: Mean of each channel of the real images the set was condensed with.
        std: Standard deviation of each channel.
        method: How it was made: `dc`, `dsa` or `dm`.
        about: JSON values: settings, seed, restarts, losses and the like.

    Raises:
        InputError: A wrong shape or dtype, values that are not finite, labels out of range, classes
            of different sizes, or mean or std for another number of channels.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    method: str
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype != torch.float32 or len(images) == 0:
            raise InputError(
                f"images of shape {list(images.shape)} and dtype {images.dtype}: expected "
                "float32 [K n, C, H, W]"
            )
        if not bool(images.isfinite().all()):
            raise InputError("images hold values that are not finite: condense again")
        if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise InputError(
                f"labels of shape {list(labels.shape)} and dtype {labels.dtype}: expected int64 "
                f"[{len(images)}]"
            )
        if int(labels.min()) < 0 or int(labels.max()) >= len(self.classes):
            raise InputError(
                f"labels from {int(labels.min())} to {int(labels.max())}: expected 0 to "
                f"{len(self.classes) - 1} for {len(self.classes)} classes"
            )
        counts = torch.bincount(labels, minlength=len(self.classes))
        if int(counts.min()) != int(counts.max()):
            raise InputError(
                f"classes have {int(counts.min())} to {int(counts.max())} images: expected as many "
                "of every class"
            )
        if not len(self.mean) == len(self.std) == images.shape[1] or not min(self.std) > 0:
            raise InputError(
                f"mean={self.mean} and std={self.std}: expected one number for each of the "
                f"{images.shape[1]} channel(s), std above 0"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def per_class(self) -> int:
        """Images of each class."""
        return len(self) // self.num_classes

    def clipped(self) -> Tensor:
        """Return the images with values cut to [0, 1], float32 [K n, C, H, W]."""
        return self.images.clamp(0, 1)

    def to_image_set(self) -> ImageSet:
        """Return the images rounded to 256 grey levels: for eyes and for tools that take files."""
        pixels = (self.clipped() * 255).round().to(torch.uint8)
        return ImageSet(pixels, self.labels, self.num_classes)

    def loader(
        self,
        *,
        batch_size: int,
        seed: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        shuffle: bool = True,
        augment: Augmentation = "none",
        device: torch.device | str | None = None,
    ) -> TensorLoader:
        """Return batches, as `regraft.data.TensorLoader` gives them for real images.

        Order, shares, augmentation and arguments are those of `TensorLoader`, and images become
        (x - mean) / std in the same way, so a network that was trained on the real images with
        this mean and std can be given these.

        Args:
            batch_size: Global batch, over all processes.
            seed: Seed of order and augmentation.
            mean: Mean of each channel, for pixels in [0, 1]; by default the set's own.
            std: Standard deviation of each channel; by default the set's own.
            shuffle: A new order every epoch instead of the order of the set.
            augment: What is done to each image; see `regraft.data.draw`.
            device: Where the images are kept and the batches made.

        Raises:
            InputError: As `TensorLoader`.
        """
        pixels = _Pixels(self.images * 255, self.labels, self.num_classes)
        return TensorLoader(
            cast("ImageSet", pixels),  # it has all that a loader looks at
            batch_size=batch_size,
            mean=tuple(self.mean if mean is None else mean),
            std=tuple(self.std if std is None else std),
            shuffle=shuffle,
            augment=augment,
            seed=seed,
            device=device,
        )

    def save(self, path: Path | str) -> int:
        """Write the set to a safetensors file, whole or not at all, and return its bytes.

        The header holds schema, class names, mean, std, method and `about` as JSON.

        Raises:
            InputError: `about` holds something that is not JSON, or the path cannot be written.
        """
        tensors = {
            "images": self.images.cpu().contiguous().clone(),
            "labels": self.labels.cpu().contiguous().clone(),
        }
        header = {
            "kind": _KIND,
            "schema": SCHEMA,
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "method": self.method,
            "about": dict(self.about),
        }
        try:
            text = json.dumps(header, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"about: {error}; give text, finite numbers, lists and dictionaries"
            ) from error
        write_tensors(path, tensors, {"regraft": text})
        return Path(path).stat().st_size

    @classmethod
    def load(cls, path: Path | str) -> CondensedSet:
        """Read what `save` wrote, or the `condensed.safetensors` of a run folder.

        Raises:
            InputError: No such file, no condensed set, damaged, or from a newer schema.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "condensed.safetensors"
        header, tensors = read_own(path, _KIND, SCHEMA)
        with reading(path, "condense again"):
            return cls(
                tensors["images"],
                tensors["labels"],
                tuple(map(str, header["classes"])),
                tuple(map(float, header["mean"])),
                tuple(map(float, header["std"])),
                str(header["method"]),
                dict(header["about"]),
            )


@dataclass(frozen=True, eq=False)
class _Pixels(LabelledPixels):
    """Float images in the scale of the uint8 ones, 0 to 255, with what a loader asks of a set."""

    num_classes: int

    def to(self, device: torch.device | str | None) -> _Pixels:
        return _Pixels(self.images.to(device), self.labels.to(device), self.num_classes)


def checksum(tensor: Tensor) -> str:
    """Return the BLAKE2b digest of a tensor's bytes, 32 hex digits."""
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_own(path: Path, kind: str, schema: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return header and tensors of a file of one kind, whole as it was written.

    Raises:
        InputError: No such file, of another kind, damaged, or from a newer schema.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; `regraft condense` writes condensed sets")
    with reading(path, "condense again"):
        metadata, tensors = read_tensors(path, ours=False)
        header = parse_json(metadata.get("regraft", "null"))
        if not isinstance(header, dict) or header.get("kind") != kind:
            raise InputError(f"{path} is no {kind}: its header does not say so")
        if header["schema"] > schema:
            raise InputError(
                f"{path} has schema {header['schema']}, this version reads up to {schema}: "
                "update regraft"
            )
        return header, tensors
