"""Images without labels, of files and folders, prepared as a network was trained on them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.errors import InputError, few

_BATCH = 64
_HUGE = 1e30


@dataclass(frozen=True)
class Preparation:
    """What a network's images must have gone through: mean and std of each channel, for [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, ticket: Any, path: Path) -> Preparation:
        """Return what a ticket says.

        Raises:
            InputError: Mean or std is missing, not one number for each channel, or a std is not
                above 0.
        """
        statistics = [ticket.about.get(k) for k in ("mean", "std")]
        channels = ticket.about["input"].get("channels")
        for key, values in zip(("mean", "std"), statistics, strict=True):
            fits = isinstance(values, list) and len(values) == channels
            if not fits or not all(type(v) in (int, float) and abs(v) < _HUGE for v in values):
                raise InputError(
                    f"{path} has {key}={str(values)[:100]} for images of {channels} channel(s): say one "
                    f"number for each channel with `regraft ticket pack --{key}`"
                )
        if min(statistics[1]) <= 0:
            raise InputError(
                f"{path} has std={statistics[1]}: expected numbers above 0, so say them with "
                "`regraft ticket pack --std`"
            )
        return cls(tuple(statistics[0]), tuple(statistics[1]))

    def normalised(self, pixels: Any) -> Any:
        """Return float32 (x / 255 - mean) / std of uint8 images, by the loaders' own arithmetic."""
        return next(iter(self.batches(pixels, len(pixels))))

    def batches(self, pixels: Any, size: int = 500) -> Iterable[Any]:
        """Return the images in prepared batches; see `normalised`."""
        import torch

        from regraft.data import ImageSet, TensorLoader

        labels = torch.zeros(len(pixels), dtype=torch.int64)
        loader = TensorLoader(
            ImageSet(pixels, labels, 1),
            batch_size=size,
            mean=self.mean,
            std=self.std,
            shuffle=False,
            augment="none",
            seed=0,
        )
        return (x for x, _, _ in loader.batches(0))


def files_of(paths: tuple[Path, ...]) -> list[Path]:
    """Return the named files, and those in the named folders.

    Raises:
        InputError: A path that is not there, or a folder without images.
    """
    from regraft.data.folder import image_files

    files = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such image or folder; check the path")
        below = image_files(path) if path.is_dir() else [path]
        if not below:
            raise InputError(f"{path} holds no images: expected files such as .jpg or .png in it")
        files += below
    return files


def readable(paths: list[Path], left: dict[Path, str] | None) -> list[Path]:
    """Return the files that `decoded` did not leave out; a warning names the others."""
    if not left:
        return paths
    reasons = few(left.values(), 20, "; ")
    warnings.warn(f"left out {len(left)} unreadable image(s): {reasons}", stacklevel=2)
    return [path for path in paths if path not in left]


def decoded(
    paths: list[Path], channels: int, size: int, *, unreadable: dict[Path, str] | None = None
) -> Iterable[Any]:
    """Yield batches of images, uint8 [b, channels, size, size].

    Args:
        paths: The files.
        channels: Channels that the network takes.
        size: Side in pixels.
        unreadable: Filled with the files that are left out since they cannot be decoded, and why;
            without it such a file is refused.

    Raises:
        InputError: A file is no image, or the network takes neither 1 nor 3 channels.
    """
    import torch

    from regraft.data import FileSet

    if channels not in (1, 3):
        raise InputError(
            f"the network takes images of {channels} channels: image files have 3, or 1 when made grey"
        )
    every = torch.zeros(len(paths), dtype=torch.int64)
    files = FileSet(tuple(paths), every, 1, size, channels)
    for rows in torch.arange(len(paths)).split(_BATCH):
        part = files.subset(rows)
        if unreadable is not None:
            bad = part.unreadable()
            unreadable |= {part.paths[i]: reason for i, reason in bad.items()}
            good = [i for i in range(len(part)) if i not in bad]
            part = part.subset(torch.tensor(good, dtype=torch.int64))
        if len(part):
            # Threads decode into the batch, outside of the mode that the caller predicts in.
            with torch.inference_mode(False):
                pixels = part.decoded()
            yield pixels
    if unreadable and len(unreadable) == len(set(paths)):
        raise InputError(f"no image can be read: {few(unreadable.values(), 2, '; ')}: give others")
