"""New classifiers for bases that were made for other classes than the fine-tuning that is carried over.

As in the paper's fine-tuning, both networks then begin with a new head of the tuned network's shape,
each with one of its own, and the change of the head counts from there.

References:
    Chijiwa 2024 (arXiv 2305.14122), the experiments on CIFAR-100, Cars and CUB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

from regraft import streams
from regraft.checkpoints.checkpoint import Checkpoint
from regraft.checkpoints.model_card import KEY


def other_head(base: Checkpoint, tuned: Checkpoint) -> list[str]:
    """Return the classifier's tensors where nothing but its rows differs, else nothing."""
    if set(base) != set(tuned):
        return []
    names = [k for k, t in tuned.sketch.items() if t.shape != base.sketch[k].shape]
    rows_alone = all(
        tuned.sketch[k].ndim == base.sketch[k].ndim > 0
        and tuned.sketch[k].shape[1:] == base.sketch[k].shape[1:]
        for k in names
    )
    modules = {k.rpartition(".")[0] for k in names}
    leaves = {k.rpartition(".")[2] for k in names}
    # More rows in another layer would show in what reads them: it is the last one.
    return names if rows_alone and len(modules) == 1 and leaves == {"weight", "bias"} else []


def with_new_head(
    base: Checkpoint, tuned: Checkpoint, names: Sequence[str], seed: int, which: int
) -> Checkpoint:
    """Return a base with a new head of the tuned network's shape, which it then says it is of.

    Both are uniform on ±1/sqrt(inputs of a row), as PyTorch draws a linear layer.

    Args:
        base: The base.
        tuned: The tuned network.
        names: The head's tensors.
        seed: Seed of the head.
        which: Number of the draw: 0 for the source's, 1 for the target's.
    """
    weight = next(name for name in names if name.endswith("weight"))
    bound = 1 / math.sqrt(tuned.sketch[weight][0].numel())
    drawn = {}
    for name in names:
        like = tuned.sketch[name]
        values = streams.uniform(seed, f"transfer.head/{name}", which, like.numel())
        drawn[name] = (bound * values).reshape(like.shape).to(like.dtype)
    about = tuned.about or {k: v for k, v in base.about.items() if k != "classes"}
    return replace(base.extended(drawn), metadata={**base.metadata, KEY: json.dumps(about)})


def new_head_note(
    bases: Sequence[Checkpoint], tuned: Checkpoint, names: Sequence[str], seed: int
) -> str:
    """Return in one sentence what was done to the bases, which are as they were before."""
    rows = [int(c.sketch[names[0]].shape[0]) for c in bases]
    each = " and ".join(f"{c.path} ({n} rows)" for c, n in zip(bases, rows, strict=True))
    own = "one of its own" if len(bases) > 1 else "one"
    return (
        f"{each} {'have' if len(bases) > 1 else 'has'} another classifier ({', '.join(names)}) than "
        f"{tuned.path} ({tuned.sketch[names[0]].shape[0]} rows): {'each' if len(bases) > 1 else 'it'} got "
        f"{own} of that shape, drawn with --seed {seed}, from which the change of the classifier counts"
    )
