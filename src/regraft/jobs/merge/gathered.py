"""Former names of `models`, until jobs/transfer uses those."""

from __future__ import annotations

from typing import Any

from regraft.checkpoints.read import Checkpoint

from .models import Models as Gathered
from .models import read_models as gather


def said_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a checkpoint of ours says it is of."""
    return checkpoint.about


__all__ = ["Gathered", "gather", "said_of"]
