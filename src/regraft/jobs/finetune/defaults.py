"""What a fine-tuning takes where its user leaves it open: optimiser, decay, length, augmentation."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from regraft.config import Augmentation, OptimConfig
from regraft.config.finetune import Metric
from regraft.data import Splits
from regraft.features import METHODS

from .start_network import refuse_single_images

EPOCHS = 30
_STEPS = 200
_LEAST_TO_CROP = 24


def optim_for(
    model: nn.Module,
    splits: Splits,
    method: str,
    optim: OptimConfig,
    *,
    optimizer: str = "auto",
    weight_decay: float | None = None,
    epochs: int | None = None,
    frozen: bool = False,
) -> OptimConfig:
    """Return optimiser and length that fit a network and its images; the best state is kept.

    What is left open is chosen as `FinetuneJob` says.

    Raises:
        InputError: A step would see a single image and the network has a BatchNorm that cannot.
    """
    normed = any(isinstance(m, nn.LayerNorm) for m in model.modules())
    chosen = ("adamw" if normed else "sgd") if optimizer == "auto" else optimizer
    if weight_decay is None:
        weight_decay = 0.0 if method in METHODS and METHODS[method].decays_itself else 1e-4
    size = min(optim.batch_size, len(splits.train))
    if _fewest(len(splits.train), size, optim.accumulate) == 1:
        shape = (splits.channels, splits.image_size, splits.image_size)
        refuse_single_images(model, torch.zeros(1, *shape), frozen=frozen)
    return replace(
        optim,
        optimizer="adamw" if chosen == "adamw" else "sgd",
        weight_decay=weight_decay,
        batch_size=size,
        epochs=epochs or max(EPOCHS, math.ceil(_STEPS / _steps(len(splits.train), size))),
        nesterov=chosen == "sgd",
        select="best",
    )


def augment_for(splits: Splits, augment: Augmentation | None) -> Augmentation:
    """Return the augmentation: `crop`, and `none` for images that shifts would move the object out of."""
    if augment is not None:
        return augment
    return "crop" if splits.image_size >= _LEAST_TO_CROP else "none"


def metric_for(splits: Splits, choose_by: str) -> Metric:
    """Return what settings are chosen by: `auto` is balanced where a class has under half of another."""
    counts = torch.bincount(splits.train.labels, minlength=splits.num_classes)
    counts = counts[counts > 0]
    uneven = 2 * int(counts.min()) < int(counts.max())
    balanced = choose_by == "balanced" or (choose_by == "auto" and uneven)
    return "balanced_accuracy" if balanced else "accuracy"


def _steps(images: int, batch: int) -> int:
    """Return the batches of an epoch; a last single image joins the batch before it."""
    return max(math.ceil(images / batch) - (images % batch == 1 and images > batch > 1), 1)


def _fewest(images: int, batch: int, accumulate: int) -> int:
    """Return how many images the smallest chunk of a step has."""
    last = images % batch or batch
    sizes = {batch, batch + 1 if last == 1 and batch > 1 else last}
    return min(len(part) for size in sizes for part in torch.empty(size).chunk(accumulate))
