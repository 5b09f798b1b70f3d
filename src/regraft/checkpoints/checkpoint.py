"""A state dict in files: tensors by name, read when they are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from regraft.errors import InputError

from .model_card import read_header


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, Tensor]):
    """A state dict in files: a mapping that reads a tensor when it is asked for.

    Attributes:
        path: What the user named.
        sketch: Every tensor without its values, on the meta device, by name.
        where: File and name in it of each tensor; None for one that lies in `loaded`.
        loaded: Tensors of a `torch.save` file, by name in it.
        metadata: The header's own entries, of safetensors.
        notes: What was done to make it readable, a sentence each.
    """

    path: Path
    sketch: Mapping[str, Tensor]
    where: Mapping[str, tuple[Path | None, str]]
    loaded: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Tensor:
        file, inner = self.where[name]
        if file is None:
            return self.loaded[inner]
        with opened_safetensors(file) as opened:
            return opened.get_tensor(inner)

    def __iter__(self) -> Iterator[str]:
        return iter(self.where)

    def __len__(self) -> int:
        return len(self.where)

    @property
    def about(self) -> dict[str, Any]:
        """What the header of one of our own files says it is of; empty for files of others."""
        return read_header(self.metadata)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.sketch.values())

    def extended(self, tensors: Mapping[str, Tensor], *notes: str) -> Checkpoint:
        """Return the checkpoint with tensors that are in no file added or put in a place, and notes."""
        sketch = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
        inner = {name: f"extended {len(self.loaded)}: {name}" for name in tensors}
        return replace(
            self,
            sketch={**self.sketch, **sketch},
            where={**self.where, **{name: (None, key) for name, key in inner.items()}},
            loaded={**self.loaded, **{inner[name]: tensors[name] for name in tensors}},
            notes=(*self.notes, *notes),
        )

    def renamed(self, names: Mapping[str, str], *notes: str) -> Checkpoint:
        """Return the checkpoint with the tensors `names[new]` as `new`, in that order, and notes."""
        return replace(
            self,
            sketch={new: self.sketch[old] for new, old in names.items()},
            where={new: self.where[old] for new, old in names.items()},
            notes=(*self.notes, *notes),
        )


@contextlib.contextmanager
def opened_safetensors(file: Path) -> Iterator[Any]:
    """Open a safetensors file.

    Raises:
        InputError: It cannot be read as one.
    """
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            yield opened
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(
            f"{file} cannot be read as safetensors ({error}): it is damaged or cut short, or "
            "something else; copy or convert it again"
        ) from error
