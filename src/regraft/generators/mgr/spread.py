"""How much generated images of one class differ, over real ones: what tells a collapsed generator.

Agreement with a classifier does not: a generator with one good image a class agrees entirely.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regraft.generators.sources import Source

from .batches import Fitted
from .folds import unit_images

COLLAPSED = 0.5
"""Ratio below which choosing among a generator's latents cannot matter much."""

_IMAGES = 16


@torch.no_grad()
def spread_ratio(
    source: Source, images: Any, labels: Tensor, fitted: Fitted, *, seed: int = 0
) -> float | None:
    """Return the mean distance of two generated images of one class over that of two real ones.

    None where no class has two real images. At most 16 images of each of the first 10 classes are
    looked at.

    Args:
        source: What generates.
        images: Real images, as `Folds` takes them.
        labels: int64 [n]; another numbering than the source's does no harm.
        fitted: How generated images are brought to the size of real ones.
        seed: Which are drawn.
    """
    draw = torch.Generator().manual_seed(seed)
    real = []
    for k in labels.unique()[:10]:
        rows = (labels.cpu() == k.cpu()).nonzero().flatten()[:_IMAGES]
        if len(rows) > 1:
            real.append(torch.pdist(unit_images(images, rows).flatten(1).cpu()).mean())
    if not real:
        return None
    made = []
    for k in range(min(source.classes, 10)):
        y = torch.full((_IMAGES,), k, dtype=torch.int64, device=source.device)
        batch = source.sample(_IMAGES, labels=y, latents=source.latents(_IMAGES, draw))
        made.append(torch.pdist(fitted.fit(batch).flatten(1).cpu()).mean())
    return float(torch.stack(made).mean() / torch.stack(real).mean().clamp(min=1e-12))
