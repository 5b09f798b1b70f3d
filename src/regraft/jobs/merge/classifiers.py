"""The classifiers of checkpoints: how many rows they have, what these mean, and one size for all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regraft.checkpoints.read import Checkpoint
from regraft.data import Splits
from regraft.errors import InputError
from regraft.symmetry.merge.heads import Head, find_head, widen_heads

from .config import AlignConfig


def rows_of(checkpoint: Checkpoint, head: Head) -> int | None:
    """Return the rows of a checkpoint's classifier, None where it has none of that name."""
    for name, tensor in checkpoint.sketch.items():
        # A checkpoint may still carry a prefix here.
        same = name == head.weight or name.endswith(f".{head.weight}")
        if (same or head.weight.endswith(f".{name}")) and tensor.ndim >= 1:
            return int(tensor.shape[0])
    return None


def head_of(model: nn.Module, shape: Mapping[str, Any]) -> Head | None:
    """Return a network's classifier, None where it has none that could be kept apart.

    Args:
        model: The network, which may be on the meta device.
        shape: The `channels` and `image_size` that it was built for.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    size = shape["image_size"]
    try:
        return find_head(
            model, example=torch.zeros(2, shape["channels"], size, size, device=device)
        )
    except InputError:
        return None


def class_names(
    config: AlignConfig, about: list[dict[str, Any]], splits: list[Splits], counts: list[int]
) -> list[list[str]]:
    """Return the names of each model's classes, an empty list where they are unknown."""
    classes = []
    for i, count in enumerate(counts):
        if config.class_names:
            names = [name.strip() for name in config.class_names[i].split(",")]
            if len(names) != count:
                raise InputError(
                    f"--class-names of {config.checkpoints[i]} are {len(names)} and its classifier has "
                    f"{count} rows: expected one name for each row"
                )
        else:
            said = about[i].get("classes")
            own = splits[i if len(splits) > 1 else 0].classes if splits else ()
            names = [str(name) for name in (said if isinstance(said, list) else own)]
        classes.append(names if len(names) == count else [])
    return classes


def one_size(
    states: list[dict[str, Tensor]],
    counts: list[int],
    names: list[list[str]] | None,
    head: Head | None,
    heads: str,
    paths: list[Path],
) -> tuple[list[dict[str, Tensor]], list[str] | None]:
    """Return the states with classifiers of one size, and the classes of a union.

    Raises:
        InputError: The classifiers differ and share no names, or there is none.
    """
    differing = next((i for i, count in enumerate(counts) if count != counts[0]), None)
    if heads == "shared" and differing is not None:
        raise InputError(
            f"{paths[0]} has {counts[0]} classes and {paths[differing]} has {counts[differing]}: "
            "merge them with --heads union or --heads separate"
        )
    if heads == "shared" or (heads == "any" and differing is None):
        return states, None
    if head is None:
        raise InputError(
            f"--heads {heads}: the network ends in no linear layer that could be kept apart"
        )
    if heads in ("separate", "any"):
        if differing is None:
            return states, None
        numbered = [[str(row) for row in range(count)] for count in counts]
        return widen_heads(states, numbered, head)[0], None
    if names is None:
        raise InputError(
            "--heads union matches classes by name and these are not known: give --class-names once "
            "for each model, or --data once for each"
        )
    if len(names) < len(states):
        raise InputError("--heads union has no use of a base model: leave out --base")
    wide, union = widen_heads(states, names, head)
    return wide, list(union)
