"""Names of tensors that wrappers and trainers changed, and what else a checkpoint of others lacks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint
from .model_card import KEY

WRAPPERS = ("module.", "_orig_mod.")
"""What torch's own wrappers put before every name, whatever the network is."""

PREFIXES = (
    *WRAPPERS,
    "model.",
    "net.",
    "network.",
    "backbone.",
    "encoder.",
    "student.",
    "classifier.",
)

_DEEPEST = 4
"""Wrappers inside of each other."""

_COUNTERS = "num_batches_tracked"
_POSITIONS = ("pos_embed", "pos_embedding", "position_embeddings", "positional_embedding")


def unwrapped(checkpoint: Checkpoint, names: Collection[str] = ()) -> Checkpoint:
    """Return a checkpoint without the prefixes that wrappers put before the names.

    With the names of a network, a prefix comes off (or is added) as long as more of the names are then
    among them, so that a network whose own names begin so keeps them. Without any, only those of
    torch's wrappers do. The files of Regraft have the network's own names and are left alone.

    Args:
        checkpoint: The checkpoint.
        names: The names of the network's tensors, where they are known.
    """
    if KEY in checkpoint.metadata:
        return checkpoint
    known = set(names)
    if not known:
        for prefix in WRAPPERS:
            if checkpoint and all(name.startswith(prefix) for name in checkpoint):
                checkpoint = _without(checkpoint, prefix) or checkpoint
        return checkpoint
    # Several may have been put on, one by one: the fewest that leave the most names of the network.
    best, hits, layer = checkpoint, len(known & set(checkpoint)), [checkpoint]
    for _ in range(_DEEPEST):
        shorter = [_without(one, prefix) for one in layer for prefix in PREFIXES]
        layer = [new for new in shorter if new is not None]
        for new in layer:
            count = len(known & set(new))
            if count > hits:
                best, hits = new, count
    return _prefixed(best, known)


def _without(checkpoint: Checkpoint, prefix: str) -> Checkpoint | None:
    """Return a checkpoint without a prefix; None where no name has it or two names would be one."""
    shorter = {name.removeprefix(prefix): name for name in checkpoint}
    if len(shorter) < len(checkpoint) or all(new == old for new, old in shorter.items()):
        return None
    note = f"{checkpoint.path}: the prefix {prefix!r} of names was dropped"
    return checkpoint.renamed(shorter, note)


def _prefixed(checkpoint: Checkpoint, known: Collection[str]) -> Checkpoint:
    """Return a checkpoint with a prefix that only the network's names have."""
    if not known or set(known) & set(checkpoint):
        return checkpoint
    for prefix in PREFIXES:
        longer = {prefix + name: name for name in checkpoint}
        if set(longer) & set(known):
            note = f"{checkpoint.path}: the prefix {prefix!r} of names was added"
            return checkpoint.renamed(longer, note)
    return checkpoint


def with_counters(checkpoint: Checkpoint, expected: Mapping[str, Tensor]) -> Checkpoint:
    """Return a checkpoint with BatchNorm's counters of batches, which are of no use and often left out."""
    missing = [n for n in expected if n.endswith(_COUNTERS) and n not in checkpoint]
    if not missing or any(n.endswith(_COUNTERS) for n in checkpoint):
        return checkpoint
    return checkpoint.extended({name: torch.zeros((), dtype=torch.int64) for name in missing})


def with_positions(checkpoint: Checkpoint, expected: Mapping[str, Tensor]) -> Checkpoint:
    """Return a checkpoint with embeddings of positions at another image size resampled, as timm does.

    An embedding [1, p + h^2, d] of p tokens for no place and h x h places becomes [1, p + g^2, d], its
    places resampled bicubically with antialiasing.
    """
    for name, tensor in expected.items():
        if not name.rpartition(".")[2].endswith(_POSITIONS) or name not in checkpoint:
            continue
        old, new = checkpoint.sketch[name].shape, tensor.shape
        prefixes = _prefix_tokens(old, new)
        if old == new or prefixes is None:
            continue
        resampled = _resampled(checkpoint[name], math.isqrt(new[1] - prefixes), prefixes)
        note = (
            f"{checkpoint.path}: {name} was resampled from {math.isqrt(old[1] - prefixes)}^2 to "
            f"{math.isqrt(new[1] - prefixes)}^2 places"
        )
        checkpoint = checkpoint.extended({name: resampled}, note)
    return checkpoint


def _prefix_tokens(old: torch.Size, new: torch.Size) -> int | None:
    """Return how many tokens of an embedding belong to no place, None where two do not go together."""
    if len(old) != 3 or len(new) != 3 or (old[0], old[2]) != (new[0], new[2]):
        return None
    for prefixes in range(min(9, old[1], new[1])):
        places = [n - prefixes for n in (old[1], new[1])]
        if all(math.isqrt(n) ** 2 == n for n in places):
            return prefixes
    return None


def _resampled(embedding: Tensor, side: int, prefixes: int) -> Tensor:
    tokens, places = embedding[:, :prefixes], embedding[:, prefixes:]
    grid = math.isqrt(places.shape[1])
    image = places.reshape(1, grid, grid, -1).permute(0, 3, 1, 2).float()
    image = nn.functional.interpolate(image, (side, side), mode="bicubic", antialias=True)
    places = image.permute(0, 2, 3, 1).reshape(1, side * side, -1).to(embedding.dtype)
    return torch.cat([tokens, places], dim=1)
