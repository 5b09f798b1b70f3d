"""Packed sequences while a network is exported: their padded twins, whose units move alike.

A packed batch holds the rows of a padded one [time, batch, ...], one time after another, without the
padding. For the symmetries it does not matter what stands there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def is_packed_layer(name: str, args: Any) -> bool:
    """Whether a recurrent layer is called with packed data: (data, batch sizes, state, weights, ...)."""
    if name not in _RECURRENT or len(args) < 4 or not isinstance(args[1], Tensor):
        return False
    return args[1].ndim == 1 and isinstance(args[3], list | tuple)


def pack(padded: Tensor, lengths: Tensor, *, batch_first: bool) -> tuple[Tensor, Tensor]:
    """Return the rows of a padded batch, and how many there are at each time [times].

    Args:
        padded: [batch, time, ...] or [time, batch, ...].
        lengths: Length of each sequence, with its value.
        batch_first: Which of the two.
    """
    with real():
        present = torch.arange(int(lengths.max()))[:, None] < lengths[None].cpu()
        time, row = present.nonzero(as_tuple=True)
        counts = present.sum(1)
    return padded[(row, time) if batch_first else (time, row)], counts


def pad(data: Tensor, counts: Tensor, *, batch_first: bool, length: int | None) -> Tensor:
    """Return packed rows as a batch; the padding repeats rows that are there."""
    with real():
        _, at = _places(counts)
        if length is not None:
            at = torch.cat([at, at[-1:].expand(length - len(at), -1)])
    padded = data[at]
    return padded.transpose(0, 1) if batch_first else padded


def lengths(counts: Tensor) -> Tensor:
    """Return the length of each sequence from the rows at each time."""
    with real():
        return (counts[:, None] > torch.arange(int(counts[0]))).sum(0)


def layer(function: Any, counts: Tensor, args: Any) -> tuple[Any, ...]:
    """Return what a recurrent layer makes of packed data: its rows, and its states."""
    data, _, state, *rest = args
    with real():
        where, at = _places(counts)
    output, *states = function(data[at], state, *rest, False)
    return (output[where], *states)


def _places(counts: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return the time and row of each packed row, and the packed row [time, batch] of each."""
    present = torch.arange(int(counts[0]))[None] < counts[:, None]
    time, row = present.nonzero(as_tuple=True)
    return (time, row), (present.flatten().cumsum(0) - 1).clamp(min=0).view(present.shape)


@contextlib.contextmanager
def real() -> Iterator[None]:
    """Compute with values, whatever traces."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


__all__ = ["is_packed_layer", "layer", "lengths", "pack", "pad", "real"]
