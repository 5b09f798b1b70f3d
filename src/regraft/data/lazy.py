"""Images that stay in their files until they are needed."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from regraft.errors import InputError

from .decode import decode

_T = TypeVar("_T")


def grey(pixels: Tensor) -> Tensor:
    """Return the luma of RGB images, uint8 [b, 1, H, W], as Pillow's own "L" rounds it.

    Args:
        pixels: uint8 [b, 3, H, W].
    """
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(1, 3, 1, 1)
    luma = (pixels.to(torch.int32) * weights).sum(1, keepdim=True) + 0x8000
    return (luma >> 16).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class FileSet:
    """Labelled image files, decoded one at a time.

    Args:
        paths: The files.
        labels: Class of every file, int64 [N].
        num_classes: Number of classes.
        image_size: Side in pixels to which every image is brought.
        channels: 3, or 1 for their luma.
    """

    paths: tuple[Path, ...]
    labels: Tensor
    num_classes: int
    image_size: int

    channels: int = 3

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Return one image, uint8 [channels, image_size, image_size]."""
        image = decode(self.paths[index], self.image_size)
        return image if self.channels == 3 else grey(image[None])[0]

    @property
    def nbytes(self) -> int:
        """Bytes that all images take once decoded."""
        return len(self) * self.channels * self.image_size**2

    def subset(self, indices: Tensor) -> FileSet:
        """Return the files at `indices`, int64 [n], as a new set."""
        paths = tuple(self.paths[i] for i in indices.tolist())
        return replace(self, paths=paths, labels=self.labels[indices])

    def decoded(self) -> Tensor:
        """Return all images, uint8 [N, channels, image_size, image_size].

        Raises:
            InputError: Files cannot be decoded; the message names the first ones.
        """
        out = torch.empty(
            len(self), self.channels, self.image_size, self.image_size, dtype=torch.uint8
        )

        def put(index: int) -> None:
            out[index] = self[index]

        refuse(list(self._failures(put).values()))
        return out

    def unreadable(self) -> dict[int, str]:
        """Decode every image once and return what was wrong with those that cannot be."""
        return self._failures(self.__getitem__)

    def _failures(self, use: Callable[[int], object]) -> dict[int, str]:
        def attempt(index: int) -> str | None:
            try:
                use(index)
            except InputError as error:
                return str(error)
            return None

        # Pillow warns about harmless oddities (stray EXIF bytes); failures still raise. The filters
        # belong to the process: threads that each set and restored them would leave them astray.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reasons = threaded(attempt, range(len(self)))
        return {index: reason for index, reason in enumerate(reasons) if reason}


def threaded(function: Callable[[int], _T], items: Iterable[int]) -> list[_T]:
    """Map over `items` with a few threads (Pillow decodes outside the interpreter lock)."""
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(function, items))


def cores() -> int:
    """Return how many processor cores this process may decode on, 8 at most."""
    # A container or a job scheduler may allow fewer cores than the machine has.
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(8, allowed)


def refuse(reasons: list[str]) -> None:
    """Raise an InputError that lists the first unreadable images, if there are any."""
    if reasons:
        shown = "; ".join(reasons[:5])
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        raise InputError(
            f"{shown}{more}: remove or repair these files, or leave them out with "
            "--unreadable skip (in Python unreadable='skip')"
        )
