"""How long and by which optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .check import AT_LEAST_1, BELOW_1, NOT_NEGATIVE, POSITIVE

Schedule = Literal[
    "constant", "cosine", "epoch-cosine", "linear", "multistep", "multistep-30-60-80"
]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser, schedule and length of training."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, POSITIVE] = 0.1
    momentum: Annotated[float, BELOW_1] = 0.9
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-4
    nesterov: bool = False
    epochs: Annotated[int, AT_LEAST_1] = 10
    batch_size: Annotated[int, AT_LEAST_1] = 128
    """Global batch: over all processes and accumulation chunks together."""
    accumulate: Annotated[int, AT_LEAST_1] = 1
    """Chunks into which each process cuts its share of a batch."""
    schedule: Schedule = "epoch-cosine"
    warmup_epochs: Annotated[int, NOT_NEGATIVE] = 0
    cooldown_epochs: Annotated[int, NOT_NEGATIVE] = 0
    """Epochs at `cooldown_lr` after the cosine has ended."""
    cooldown_lr: Annotated[float, NOT_NEGATIVE] = 1e-5
    label_smoothing: Annotated[float, BELOW_1] = 0.0
    clip_norm: Annotated[float | None, POSITIVE] = None
    select: Literal["last", "best"] = "last"
    """Keep the last state, or that of the best validation accuracy (ties: lower loss, earlier)."""
