"""What the trials of a fine-tuning share: its batches, its optimiser, its length."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from regraft.data import FolderLoader, ImageSet, Mixup, Splits, TensorLoader
from regraft.protocols import BatchSource
from regraft.train import Batches

from .start import Start
from .start_network import refuse_single_images
from .trial import Workshop

if TYPE_CHECKING:
    from .job import FinetuneJob

EPOCHS = 30
_STEPS = 200
_LEAST_TO_CROP = 24


def workshop_of(job: FinetuneJob, splits: Splits, start: Start, fabric: Any) -> Workshop:
    """Return everything that the trials of a job share.

    Raises:
        InputError: A step would see a single image and the network has a BatchNorm that cannot.
    """
    normed = any(isinstance(m, nn.LayerNorm) for m in start.model.modules())
    optimizer = ("adamw" if normed else "sgd") if job.optimizer == "auto" else job.optimizer
    decay = job.weight_decay
    if decay is None:
        decay = 0.0 if job.finetune.method in ("l2sp", "delta") else 1e-4
    size = min(job.optim.batch_size, len(splits.train))
    if _fewest(len(splits.train), size, job.optim.accumulate) == 1:
        shape = (splits.channels, splits.image_size, splits.image_size)
        refuse_single_images(
            start.model, torch.zeros(1, *shape), frozen=job.finetune.freeze_batchnorm
        )
    batches = _batches(job, splits, size, fabric.device)
    optim = replace(
        job.optim,
        optimizer=optimizer,
        weight_decay=decay,
        batch_size=size,
        epochs=job.epochs or max(EPOCHS, math.ceil(_STEPS / len(batches.train))),
        nesterov=optimizer == "sgd",
        select="best",
    )
    mixed = None
    if job.finetune.mixup is not None:
        mixed = Mixup(
            batches.train,
            alpha=job.finetune.mixup,
            num_classes=splits.num_classes,
            seed=job.runtime.seed,
        )
    return Workshop(start, batches, mixed, job.finetune, optim, job.runtime, fabric)


def _batches(job: FinetuneJob, splits: Splits, size: int, device: torch.device) -> Batches:
    augment = job.augment or ("crop" if splits.image_size >= _LEAST_TO_CROP else "none")

    def source(images: Any, train: bool) -> BatchSource:
        in_memory = isinstance(images, ImageSet)
        return (TensorLoader if in_memory else FolderLoader)(
            images,
            batch_size=size if train else max(size, 100),
            mean=splits.mean,
            std=splits.std,
            shuffle=train,
            augment=augment if train else "none",
            seed=job.runtime.seed,
            device=device,
        )

    test = None if splits.test is None else source(splits.test, False)
    return Batches(source(splits.train, True), source(splits.validation, False), test)


def _fewest(images: int, batch: int, accumulate: int) -> int:
    """Return how many images the smallest chunk of a step has.

    A loader joins a last single image with the batch before it.
    """
    last = images % batch or batch
    sizes = {batch, batch + 1 if last == 1 and batch > 1 else last}
    return min(len(part) for size in sizes for part in torch.empty(size).chunk(accumulate))
