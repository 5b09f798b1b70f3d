"""State dicts held against an architecture, with the first mismatch named."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from torch import Tensor

from regraft.errors import InputError


def check_state(
    state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Refuse a state dict whose names or shapes are not those expected.

    Args:
        state: The state dict.
        shapes: Expected shape of every tensor.
        what: What to call it in an error, e.g. a file name.

    Raises:
        InputError: A tensor is missing, unknown or of another shape; the first is named.
    """
    for name, shape in shapes.items():
        if name not in state:
            close = difflib.get_close_matches(name, [k for k in state if k not in shapes], n=1)
            hint = f" (it has {close[0]!r})" if close else ""
            raise InputError(
                f"{what} has no tensor {name!r}{hint}: expected a checkpoint of the same architecture"
            )
        if tuple(state[name].shape) != tuple(shape):
            raise InputError(
                f"{what}: {name} has shape {tuple(state[name].shape)}, expected {tuple(shape)}: "
                "both checkpoints must be of the one architecture"
            )
    for name in state:
        if name not in shapes:
            raise InputError(
                f"{what} has a tensor {name!r} that the architecture has not: expected a checkpoint "
                "of the same architecture"
            )
