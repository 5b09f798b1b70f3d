"""The one writer of model files: weights, and a header that says what they are of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from regraft.files import write_tensors

from .model_card import header


def write_model(
    path: Path, model: nn.Module | Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write the weights of a network, whole or not at all; tied ones under each of their names.

    Args:
        path: The safetensors file.
        model: The network, or its state dict, on any device.
        about: What `ModelCard.read` finds in the header: `model`, `input`, `classes`, `mean`, `std`, ...

    Raises:
        InputError: The path cannot be written to.
        RegraftError: The disk is full or failing.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    write_tensors(path, tensors, header(about))
