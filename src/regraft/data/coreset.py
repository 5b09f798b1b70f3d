"""Coresets: a few real images of each class that stand for all of them.

References:
    Welling, "Herding dynamical weights to learn", ICML 2009; Rebuffi et al., "iCaRL: incremental
    classifier and representation learning", CVPR 2017, algorithm 4 (herding).
    Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach",
    ICLR 2018, algorithm 1 (k-center greedy).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from regraft.errors import InputError

from .images import ImageSet
from .lazy import FileSet
from .split import per_class_subset

CoresetMethod = Literal["random", "herding", "k_center"]

_CHUNK = 500


def coreset(
    images: ImageSet | FileSet,
    *,
    per_class: int,
    method: CoresetMethod = "random",
    seed: int = 0,
    features: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Choose `per_class` images of every class.

    Args:
        images: The images.
        per_class: Images of each class; more of them are the same ones and others.
        method: `random`, `herding` (the means of features agree) or `k_center` (no image is far
            from a chosen one).
        seed: Seed of a random choice; the others are determined by the features.
        features: Images uint8 [b, C, H, W] -> vectors [b, d] in which to measure; pixels in [0, 1]
            by default.

    Returns:
        Sorted indices, int64 [K * per_class].

    Raises:
        InputError: An unknown method, `per_class` below 1, a class without images or with too few,
            or features of a wrong shape or that are not finite.
    """
    if method not in get_args(CoresetMethod):
        raise InputError(f"method={method!r}: expected one of {', '.join(get_args(CoresetMethod))}")
    labels = images.labels.cpu()
    counts = torch.bincount(labels, minlength=images.num_classes)
    if bool((counts == 0).any()):
        index = int((counts == 0).nonzero()[0])
        raise InputError(
            f"class {index} of {len(counts)} has no images: add images of it or number the classes "
            "without gaps"
        )
    try:  # which knows all that can be wrong with counts
        chosen = per_class_subset(labels, per_class, seed)
    except InputError as error:
        raise InputError(f"per_class, of {len(images)} images: {error}") from error
    if method == "random":
        return chosen
    choose = herding if method == "herding" else k_center
    parts = []
    for label in range(images.num_classes):
        rows = (labels == label).nonzero().flatten()
        parts.append(rows[choose(_vectors(images, rows, features), per_class)])
    return torch.cat(parts).sort().values


def herding(vectors: Tensor, k: int) -> Tensor:
    """Choose `k` vectors one by one, each so that the mean of the chosen is nearest to that of all.

    Step t takes argmin_x |mean - (sum of chosen + x) / t| over the x not chosen yet; of equal ones
    the first.

    Args:
        vectors: [n, d].
        k: How many, at most n.

    Returns:
        Indices in the order of choice, int64 [k].
    """
    vectors = vectors.double()
    squares = vectors.square().sum(1)
    mean, total = vectors.mean(0), torch.zeros_like(vectors[0])
    chosen: list[int] = []
    for t in range(1, k + 1):
        # |t mean - total - x|^2 without what is the same for all x.
        costs = squares - 2 * (vectors @ (t * mean - total))
        costs[chosen] = torch.inf
        best = int(costs.argmin())
        chosen.append(best)
        total += vectors[best]
    return torch.tensor(chosen)


def k_center(vectors: Tensor, k: int) -> Tensor:
    """Choose `k` vectors one by one, each the farthest from all that are chosen.

    The first is the nearest to the mean. The largest distance to a chosen vector is at most twice
    the least that any choice of k has (from the same first one); of equal vectors the first is taken.

    Args:
        vectors: [n, d].
        k: How many, at most n.

    Returns:
        Indices in the order of choice, int64 [k].
    """
    vectors = vectors.double()
    chosen = [int((vectors - vectors.mean(0)).square().sum(1).argmin())]
    nearest = torch.full((len(vectors),), torch.inf, dtype=torch.float64, device=vectors.device)
    while len(chosen) < k:
        nearest = nearest.minimum((vectors - vectors[chosen[-1]]).square().sum(1))
        nearest[chosen] = -1  # duplicates of a chosen vector are at distance 0
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def _vectors(
    images: ImageSet | FileSet, rows: Tensor, features: Callable[[Tensor], Tensor] | None
) -> Tensor:
    parts = []
    for chunk in rows.split(_CHUNK):
        pixels = images.subset(chunk).decoded()
        with torch.no_grad():
            vectors = pixels.flatten(1).float() / 255 if features is None else features(pixels)
        if vectors.ndim != 2 or len(vectors) != len(chunk):
            raise InputError(
                f"features returned shape {list(vectors.shape)} for {len(chunk)} images: expected "
                f"[{len(chunk)}, d], a vector for each"
            )
        if not bool(vectors.isfinite().all()):
            raise InputError("features returned values that are not finite: give others")
        parts.append(vectors.cpu())
    return torch.cat(parts)
