"""Real images for the meta step: folds that take turns at validation, or images held out for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regraft import streams
from regraft.errors import InputError

MOST = 5


class Folds:
    """Batches of labelled images for training and for validation, drawn for a fold.

    With `held_out` the validation images are these, always. Without, the images are parted into folds of
    all classes: at fold k those of fold k validate and the others train, so that no label is lost. A
    network that trains on all of them soon knows them by heart, and the signal is then weak.

    Args:
        images: uint8 [n, C, H, W], floats in [0, 1] of that shape, or anything that gives image i,
            uint8 [C, H, W], at index i, such as a `FileSet`.
        labels: int64 [n].
        classes: Number of classes.
        folds: Number of folds; without it 5, or as many as the smallest class has images.
        held_out: Images and labels for validation.
        seed: Which image is in which fold.
        names: Names of the classes, for messages.

    Raises:
        InputError: A class is missing in a validation split.
    """

    def __init__(
        self,
        images: Any,
        labels: Tensor,
        *,
        classes: int,
        folds: int | None = None,
        held_out: tuple[Any, Tensor] | None = None,
        seed: int = 0,
        names: Sequence[str] | None = None,
    ) -> None:
        self.images, self.labels, self.held_out = images, labels.cpu(), held_out
        names = names or [str(k) for k in range(classes)]
        if held_out is not None:
            counts = torch.bincount(held_out[1].cpu(), minlength=classes)
            _refuse(counts, 1, names, "the validation images have", "hold some of each class out")
            self.folds, self._fold = 1, torch.zeros(len(self.labels), dtype=torch.int64)
            return
        counts = torch.bincount(self.labels, minlength=classes)
        fewest = int(counts.min())
        self.folds = min(MOST, fewest) if folds is None else folds
        cure = "give each class as many images as there are folds, lower folds, or give validation images"
        what = f"with folds={max(self.folds, 2)} a validation fold has"
        _refuse(counts, max(self.folds, 2), names, what, cure)
        self._fold = torch.empty(len(self.labels), dtype=torch.int64)
        for k in range(classes):
            rows = (self.labels == k).nonzero().flatten()
            order = streams.permutation(seed, f"mgr/fold/{k}", 0, len(rows))
            self._fold[rows[order]] = torch.arange(len(rows)) % self.folds

    def train(self, fold: int, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `n` training images at a fold, floats in [0, 1], and their labels."""
        if self.held_out is not None:
            rows = torch.arange(len(self.labels))
        else:
            rows = (self._fold != fold % self.folds).nonzero().flatten()
        return _batch(self.images, self.labels, rows, n, draw)

    def validation(self, fold: int, n: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return `n` validation images at a fold, floats in [0, 1], and their labels."""
        if self.held_out is not None:
            images, labels = self.held_out
            return _batch(images, labels.cpu(), torch.arange(len(labels)), n, draw)
        rows = (self._fold == fold % self.folds).nonzero().flatten()
        return _batch(self.images, self.labels, rows, n, draw)


def unit_images(images: Any, rows: Tensor) -> Tensor:
    """Return the images at `rows`, floats in [0, 1], whatever holds them."""
    if isinstance(images, Tensor):
        picked = images[rows.to(images.device)]
    else:
        picked = torch.stack([images[int(i)] for i in rows])
    return picked if picked.is_floating_point() else picked.float() / 255


def _batch(
    images: Any, labels: Tensor, rows: Tensor, n: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw without replacement, and all again where there are fewer."""
    order = []
    while sum(map(len, order)) < n:
        order.append(rows[torch.randperm(len(rows), generator=draw)])
    rows = torch.cat(order)[:n]
    return unit_images(images, rows), labels[rows]


def _refuse(counts: Tensor, least: int, names: Sequence[str], what: str, cure: str) -> None:
    short = [i for i, count in enumerate(counts.tolist()) if count < least]
    if short:
        shown = ", ".join(repr(names[i]) for i in short[:3])
        more = f" and {len(short) - 3} more" if len(short) > 3 else ""
        raise InputError(f"{what} no image of class {shown}{more}: {cure}")
