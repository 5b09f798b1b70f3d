"""Few images judged by all of them: stratified folds, each held out once from the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regraft import streams
from regraft.data import ImageSet, Splits

FEWEST = 50
"""Validation images below which a choice is made by folds: a tenth of them is chance either way."""
FOLDS = 5


def stratified_folds(labels: Tensor, folds: int, seed: int, repeat: int = 0) -> Tensor:
    """Return the fold of each image, int64 [n], or -1 for one that is alone in its class.

    The images of a class are dealt out in turn, in an order drawn from the seed, each class where the
    one before it ended: folds differ by one image at most, in all and (above one image) in each class.

    Another `repeat` is another partition.
    """
    order = streams.permutation(seed, "finetune/folds", repeat, len(labels))
    fold, dealt = torch.full((len(labels),), -1, dtype=torch.int64), 0
    for label in labels.unique().tolist():
        rows = order[labels[order] == label]
        if len(rows) == 1:
            continue  # without it there would be nothing of its class to train on
        fold[rows] = (dealt + torch.arange(len(rows))) % folds
        dealt += len(rows)
    return fold


def pooled(splits: Splits, *, with_validation: bool) -> Splits:
    """Return the target with all images that are not for the test to train on, and none to validate."""
    train, held_out = splits.train, splits.validation
    if with_validation and held_out is not None:
        train = _joined(train, held_out)
    return replace(splits, train=train, validation=None)


def held_out(splits: Splits, fold: Tensor, which: int) -> Splits:
    """Return the target with one fold of the training images for validation."""
    train: Any = splits.train
    return replace(
        splits,
        train=train.subset((fold != which).nonzero().flatten()),
        validation=train.subset((fold == which).nonzero().flatten()),
    )


def _joined(one: Any, other: Any) -> Any:
    labels = torch.cat([one.labels, other.labels])
    if isinstance(one, ImageSet):
        return ImageSet(torch.cat([one.images, other.images]), labels, one.num_classes)
    return replace(one, paths=one.paths + other.paths, labels=labels)
