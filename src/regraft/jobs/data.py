"""The data sets of jobs: loaded once, known again by what they hold, and as batches."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from regraft.config import DataConfig, OptimConfig, digest
from regraft.data import (
    Graph,
    ImageSet,
    NodeBatches,
    Splits,
    batches,
    graph_fingerprint,
    graph_names,
    load,
    load_graph,
)
from regraft.errors import InputError
from regraft.protocols import BatchSource
from regraft.train import Batches

Data = Splits | Graph

_SMALL = 64
"""Side in pixels up to which images are measured in batches of 500, else in such of 100."""

_loaded: dict[str, Data] = {}


def load_once(config: DataConfig) -> Data:
    """Load a data set or graph, or return it again if one of the last two was the same."""
    key = digest(config)
    # A run that is about two sets needs both, and its neighbour in a recipe the same two again.
    data = _loaded.pop(key, None)
    if data is None:
        for oldest in list(_loaded)[:-1]:
            del _loaded[oldest]
        data = (load_graph if config.name in graph_names() else load)(config)
    _loaded[key] = data
    return data


def fingerprint(splits: Data) -> dict[str, Any]:
    """Return what tells whether a data set is still the one a run was started with."""
    if isinstance(splits, Graph):
        return graph_fingerprint(splits)
    facts: dict[str, Any] = {"classes": len(splits.classes)}
    for name in ("train", "validation", "test"):
        images = getattr(splits, name)
        if images is None:
            continue
        hashed = hashlib.blake2b(images.labels.numpy().tobytes(), digest_size=8)
        if isinstance(images, ImageSet):
            hashed.update(images.images.contiguous().numpy().data)
        else:  # too large to read twice: the files' names, wherever the folder lies
            hashed.update("\0".join(f"{p.parent.name}/{p.name}" for p in images.paths).encode())
        facts[f"{name}_images"] = len(images)
        facts[f"{name}_digest"] = hashed.hexdigest()
    return facts


def loaders(
    splits: Data, data: DataConfig, optim: OptimConfig, *, seed: int, device: torch.device
) -> Batches:
    """Return the batches of a run: augmented and shuffled for training, plain for the rest.

    Of a graph, whatever the batch size, all training nodes are the one batch of every epoch.
    """
    if isinstance(splits, Graph):
        train, validation, test = (
            NodeBatches(splits, part, device=device) if len(getattr(splits, part)) else None
            for part in ("train", "validation", "test")
        )
        if train is None:
            raise InputError(f"data {splits.name!r} has no training nodes")
        return Batches(train, validation, test)

    many = 500 if splits.image_size <= _SMALL else 100

    def source(images: Any, train: bool) -> BatchSource | None:
        if images is None or len(images) == 0:
            return None
        size = optim.batch_size
        return batches(
            images,
            batch_size=size if train else max(size, many if isinstance(images, ImageSet) else 100),
            mean=splits.mean,
            std=splits.std,
            shuffle=train,
            augment=data.augment if train else "none",
            seed=seed,
            device=device,
        )

    train = source(splits.train, True)
    if train is None:
        raise InputError(f"data {splits.name!r} has no training images")
    return Batches(train, source(splits.validation, False), source(splits.test, False))
