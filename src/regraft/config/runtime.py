"""Where and how exactly a run computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .check import AT_LEAST_1, NOT_NEGATIVE, SEED


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where and how exactly a run computes; the seed of everything but the data split."""

    seed: Annotated[int, SEED] = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: Annotated[int, AT_LEAST_1] = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    threads: Annotated[int | None, AT_LEAST_1] = None
    """Threads of one process on the CPU; bit-identical resuming needs it unchanged."""
    compile: bool = False
    channels_last: bool = False
    """Weights of convolutions lie in memory with their channels last while training: faster for photographs
    on most machines, with other last bits."""
    checkpoint_seconds: Annotated[float, NOT_NEGATIVE] = 30.0
    """Least time between two checkpoints; 0 writes one after every step."""
    log_every: Annotated[int, AT_LEAST_1] = 50
    """Steps between two rows of training metrics; losses are checked as often."""
    eval_every: Annotated[int, AT_LEAST_1] = 1
    """Epochs between two evaluations on the validation split."""
