"""Which images go where: splits and subsets that keep the classes in proportion.

Every choice follows one random order of the images (`streams.permutation`), so it is the same on
every machine, and a smaller subset is contained in a larger one of the same seed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regraft import streams
from regraft.errors import InputError


def stratified_split(
    labels: Tensor, share: float, seed: int, said: str | None = None
) -> tuple[Tensor, Tensor]:
    """Hold out round(share n) of n images, every class in proportion.

    Args:
        labels: Class of every image, int64 [n].
        share: Share held out, in [0, 1); 0 holds out nothing.
        seed: Seed of the choice; a larger share holds out the same images and more.
        said: The option that the share comes from, for errors.

    Returns:
        Sorted indices of the kept and of the held-out images, int64.

    Raises:
        InputError: `share` outside [0, 1) or so small that no image is held out, a class without
            images, or a class of which every image would be held out.
    """
    said = said or f"share={share:g}"
    if not 0.0 <= share < 1.0:
        raise InputError(f"{said}: expected the share to hold out, at least 0 and below 1")
    counts = _counts(labels)
    size = round(share * len(labels))
    if share > 0 and size == 0:
        raise InputError(
            f"{said} of {len(labels)} images holds out none: raise it to at least "
            f"{1 / len(labels):.2g}"
        )
    order = _stratified_order(labels, counts, seed, "data/split", every_class_first=False)
    held_out, kept = order[:size].sort().values, order[size:].sort().values
    left = torch.bincount(labels[kept], minlength=len(counts))
    if bool((left == 0).any()):
        index = int((left == 0).nonzero()[0])
        raise InputError(
            f"{said}: class {index} has {int(counts[index])} image(s) and would keep none; "
            "hold out a smaller share or add images to that class"
        )
    return kept, held_out


def stratified_subset(labels: Tensor, size: int, seed: int) -> Tensor:
    """Choose `size` images, at least one of each class and otherwise in proportion.

    Args:
        labels: Class of every image, int64 [n].
        size: Number of images to choose.
        seed: Seed of the choice; a larger size chooses the same images and more.

    Returns:
        Sorted indices, int64 [size].

    Raises:
        InputError: A class without images, fewer than one image a class asked, or more images
            asked than there are.
    """
    counts = _counts(labels)
    if not len(counts) <= size <= len(labels):
        raise InputError(
            f"size={size}: expected between {len(counts)} (one image a class) "
            f"and {len(labels)} (all there are)"
        )
    order = _stratified_order(labels, counts, seed, "data/subset", every_class_first=True)
    return order[:size].sort().values


def per_class_subset(labels: Tensor, k: int, seed: int) -> Tensor:
    """Choose `k` images of every class.

    Args:
        labels: Class of every image, int64 [n].
        k: Images of each class.
        seed: Seed of the choice; a larger `k` chooses the same images and more.

    Returns:
        Sorted indices, int64 [k * classes].

    Raises:
        InputError: `k` below 1, a class without images, or a class with fewer than `k`.
    """
    if k < 1:
        raise InputError(f"k={k}: expected at least one image of each class")
    counts = _counts(labels)
    if bool((counts < k).any()):
        index = int((counts < k).nonzero()[0])
        raise InputError(
            f"k={k}: class {index} has {int(counts[index])} image(s), {k} were asked; "
            f"ask for at most {int(counts.min())} of each class or add images"
        )
    chosen, ranks = _ranks(labels, counts, seed, "data/per-class")
    return chosen[ranks < k].sort().values


def _counts(labels: Tensor) -> Tensor:
    if labels.ndim != 1 or labels.dtype != torch.int64 or len(labels) == 0:
        raise InputError(
            f"labels of shape {tuple(labels.shape)} and dtype {labels.dtype}: "
            "expected int64 [n] with n at least 1"
        )
    if int(labels.min()) < 0:
        raise InputError(f"labels hold {int(labels.min())}: expected class indices from 0 on")
    counts = torch.bincount(labels)
    if bool((counts == 0).any()):
        index = int((counts == 0).nonzero()[0])
        raise InputError(
            f"class {index} of {len(counts)} has no images: "
            "add images of it or number the classes without gaps"
        )
    return counts


def _ranks(labels: Tensor, counts: Tensor, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Return images grouped by class in random order, and each one's rank inside its class."""
    shuffled = streams.permutation(seed, name, 0, len(labels))
    grouped = shuffled[torch.argsort(labels[shuffled], stable=True)]
    starts = counts.cumsum(0) - counts
    return grouped, torch.arange(len(labels)) - starts[labels[grouped]]


def _stratified_order(
    labels: Tensor, counts: Tensor, seed: int, name: str, *, every_class_first: bool
) -> Tensor:
    """Order the images so that every prefix holds the classes in proportion (Sainte-Lague).

    The j-th image of a class of m has priority (2j + 1) / m. A divisor method is monotone: a
    longer prefix never takes an image away, which rounding class by class would.
    """
    grouped, ranks = _ranks(labels, counts, seed, name)
    priority = (2 * ranks + 1).double() / counts[labels[grouped]]
    if every_class_first:
        priority[ranks == 0] = 0
    # Ties (classes of one size) are broken at random, not in favour of the first class.
    by_tie = streams.permutation(seed, f"{name}/ties", 0, len(labels))
    return grouped[by_tie[torch.argsort(priority[by_tie], stable=True)]]
