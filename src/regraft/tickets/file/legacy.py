"""Ticket files of schema 1: plain bits in a safetensors file, as version 0.1 wrote them."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from regraft import streams
from regraft.errors import InputError
from regraft.tickets.source import WeightSource
from regraft.tickets.ticket import Ticket, TicketLayer

from .coder import Bits

_KNOWN = ("schema", "stream", "masks", "checksums")


def is_legacy(start: bytes) -> bool:
    """Return whether a file that begins so may be a safetensors file (its header's length first)."""
    return len(start) == 8 and start[4:] == bytes(4)


def load_legacy(path: Path) -> Ticket:
    """Read a ticket file of schema 1.

    Raises:
        InputError: Not such a file, damaged, or of another stream version.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("regraft.ticket")
            if text is None:
                raise InputError(
                    f"{path} is a safetensors file, but not a ticket: `regraft ticket pack` makes one of a "
                    "masked model's state"
                )
            header = json.loads(text)
            if not isinstance(header, dict):
                raise ValueError("its header is no JSON object")
            if header["schema"] != 1 or header["stream"] != streams.VERSION:
                raise InputError(
                    f"{path} has schema {header['schema']} and stream {header['stream']}, this "
                    f"version reads 1 and {streams.VERSION} in such a file: update regraft"
                )
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        for key in ("masks", "checksums"):
            if not isinstance(header[key], dict) or not header[key]:
                raise ValueError(f"its header's {key!r} is no JSON object, or empty")
        if tensors.keys() != header["checksums"].keys():
            raise ValueError("tensors are missing or too many")
        for key, tensor in tensors.items():
            if _checksum(tensor) != header["checksums"][key]:
                raise ValueError(f"the checksum of {key} is wrong")
        layers = {name: _layer(name, entry, tensors) for name, entry in header["masks"].items()}
    except InputError:
        raise
    except (
        safetensors.SafetensorError,
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        RuntimeError,
    ) as error:
        raise InputError(
            f"{path} is a damaged ticket ({' '.join(str(error).split())}): copy or write it again"
        ) from error
    state = {k.removeprefix("state/"): t for k, t in tensors.items() if k.startswith("state/")}
    sizes = dict.fromkeys(("masks", "signs", "draws", "state"), 0)
    for key, tensor in tensors.items():
        part = {"mask": "masks", "sign": "signs", "draw": "draws"}.get(key.split("/")[0], "state")
        sizes[part] += tensor.numel() * tensor.element_size()
    sizes["header"] = path.stat().st_size - sum(sizes.values())
    about = {k: v for k, v in header.items() if k not in _KNOWN}
    return Ticket(layers, state, about, {}, header, sizes)


def _layer(name: str, entry: dict[str, Any], tensors: dict[str, Tensor]) -> TicketLayer:
    source = WeightSource.from_json(entry["source"])
    kept = _bits(tensors[f"mask/{name}"], math.prod(source.shape))
    if kept.ones != entry["kept"]:
        raise ValueError(f"the mask of {name} does not fit its header")
    flips = draws = None
    if f"sign/{name}" in tensors:
        at = np.flatnonzero(kept.array())
        positive = _bits(tensors[f"sign/{name}"], kept.ones).array()
        flips = Bits.of(positive != (source.draw(index=at) > 0).numpy())
    if f"draw/{name}" in tensors:
        draws = tensors[f"draw/{name}"].numpy()
        if draws.shape != (kept.ones,):
            raise ValueError(f"the draws of {name} do not fit its mask")
    return TicketLayer(
        source,
        kept,
        tied=tuple(entry.get("tied", ())),
        flips=flips if flips is not None and flips.ones else None,
        draws=draws if draws is not None and draws.any() else None,
    )


def _bits(packed: Tensor, n: int) -> Bits:
    if packed.shape != (-(-n // 8),) or packed.dtype != torch.uint8:
        raise ValueError(f"{tuple(packed.shape)} bytes cannot hold {n} bits")
    return Bits.of(np.unpackbits(packed.numpy(), count=n, bitorder="little").view(np.bool_))


def _checksum(tensor: Tensor) -> str:
    return hashlib.blake2b(
        tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, digest_size=8
    ).hexdigest()
