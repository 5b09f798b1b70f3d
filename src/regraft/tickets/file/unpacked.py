"""A ticket as a folder that a person or another tool can read, change and pack again.

ticket.json         the header: seed, laws, shapes, what the ticket is of
masks.safetensors   for each masked weight uint8 shaped like it: 0 pruned, 1 kept by the search,
                    2 pruned for good, 3 locked
draws.safetensors   of re-randomised weights: sign/NAME uint8 (1: not the first draw's sign) or
                    draw/NAME (the event of the draw), zero where the search has not kept them
state.safetensors   every other tensor of the network
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.files import load_json, make_folder, read_tensors, reading, write_json, write_tensors
from regraft.tickets.ticket import Ticket, TicketLayer

from .coder import Bits
from .header import HeaderLayer, describe, read_header

HEADER = "ticket.json"
_TENSORS = ("masks.safetensors", "draws.safetensors", "state.safetensors")
_PRUNED_FOR_GOOD, _LOCKED = 2, 3
_MAX_BITLESS = 1 << 24


def write_unpacked(folder: Path | str, ticket: Ticket, *, force: bool = False) -> None:
    """Write a ticket as a folder.

    Args:
        folder: A folder to make, an empty one, or an unpacked ticket to replace.
        ticket: The ticket.
        force: Write a byte for each weight also where the ticket's file has no bits for most of them,
            as they are all kept, all pruned or frozen: for more than 2^24, and 2^10 for each byte of
            masks.

    Raises:
        InputError: The folder holds something else, or cannot be written, or the ticket needs
            `force`.
    """
    layers = ticket.layers.values()
    bitless = sum(e.source.numel - (0 if e.kept.packed is None else e.kept.n) for e in layers)
    most = _MAX_BITLESS + (ticket.sizes.get("masks", 0) << 10)
    # A ticket that comes from no file claims nothing: its weights were in memory.
    if ticket.sizes and bitless > most and not force:
        raise InputError(
            f"the ticket claims {bitless} weights that it has no bits for, and a folder takes a byte for "
            "each: pass --force (force=True) if you trust the ticket"
        )
    folder = make_folder(folder)
    strangers = sorted({p.name for p in folder.iterdir()} - {HEADER, *_TENSORS})
    if strangers:
        raise InputError(
            f"{folder} holds {strangers[0]}, which is no part of a ticket: name a new or empty folder"
        )
    # Without its header a half-written folder is no ticket.
    (folder / HEADER).unlink(missing_ok=True)
    tables = ({}, {}, dict(ticket.state))
    for name, layer in ticket.layers.items():
        tables[0][name] = torch.from_numpy(_codes(layer)).reshape(layer.source.shape)
        if layer.flips is not None:
            tables[1][f"sign/{name}"] = _spread(layer, layer.flips.array().view(np.uint8))
        if layer.draws is not None:
            tables[1][f"draw/{name}"] = _spread(layer, layer.draws)
    for file, tensors in zip(_TENSORS, tables, strict=True):
        if tensors:
            write_tensors(folder / file, tensors, {})
        else:
            (folder / file).unlink(missing_ok=True)
    write_json(folder / HEADER, describe(ticket, {}))


def read_unpacked(folder: Path | str) -> Ticket:
    """Read what `write_unpacked` wrote, and what somebody may have changed in it.

    Counts in the header are not trusted: they are taken from the masks.

    Raises:
        InputError: A file is missing or damaged, or the tensors do not fit the header.
    """
    folder = Path(folder)
    with reading(
        folder, "it is no unpacked ticket; give a folder that `regraft ticket unpack` wrote"
    ):
        header = load_json(folder / HEADER)
        contents = read_header(header, str(folder / HEADER))
        masks, draws, state = (_read(folder / file) for file in _TENSORS)
        if strange := masks.keys() ^ contents.layers.keys():
            raise ValueError(f"the mask {min(strange)!r} is in one of the two only")
        layers = {name: _layer(name, e, masks[name], draws) for name, e in contents.layers.items()}
        used = {f"{kind}/{name}" for name in layers for kind in ("sign", "draw")}
        if strange := draws.keys() - used:
            raise ValueError(f"{min(strange)!r} in {_TENSORS[1]} is of no mask")
        if missing := set(contents.aliases.values()) - state.keys():
            raise ValueError(f"{_TENSORS[2]} lacks {min(missing)!r}")
    return Ticket(layers, state, contents.about, contents.aliases, header)


def _codes(layer: TicketLayer) -> np.ndarray:
    """Return the code of each position, uint8 flat."""
    kept = layer.kept.array().view(np.uint8)
    if layer.pattern is None:
        return kept
    parts = layer.pattern.parts()
    codes = np.where(parts < 0, _PRUNED_FOR_GOOD, _LOCKED).astype(np.uint8)
    codes[parts == 0] = kept
    return codes


def _spread(layer: TicketLayer, values: np.ndarray) -> Tensor:
    """Return values of the kept searched positions as a tensor shaped like the weight."""
    full = np.zeros(layer.source.numel, dtype=values.dtype)
    full[_codes(layer) == 1] = values
    return torch.from_numpy(full).reshape(layer.source.shape)


def _layer(name: str, entry: HeaderLayer, codes: Tensor, draws: dict[str, Tensor]) -> TicketLayer:
    shape = entry.source.shape
    if tuple(codes.shape) != shape or codes.dtype != torch.uint8:
        raise ValueError(
            f"the mask {name!r} is {codes.dtype} {tuple(codes.shape)}, not uint8 {shape}"
        )
    flat = codes.reshape(-1).numpy()
    parts = np.zeros(flat.size, np.int8) if entry.pattern is None else entry.pattern.parts()
    frozen = {-1: _PRUNED_FOR_GOOD, 1: _LOCKED}
    if any((flat[parts == part] != code).any() for part, code in frozen.items()):
        raise ValueError(f"the mask {name!r} has another code where the seed freezes a position")
    searched = flat[parts == 0]
    if searched.size and searched.max() > 1:
        raise ValueError(f"the mask {name!r} has a code above 1 at a searched position")
    kept = searched == 1
    at = flat == 1
    values: dict[str, np.ndarray | None] = {"sign": None, "draw": None}
    for kind in values:
        tensor = draws.get(f"{kind}/{name}")
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape or tensor.is_floating_point() or tensor.is_complex():
            raise ValueError(f"{kind}/{name} is {tensor.dtype} {tuple(tensor.shape)}, not {shape}")
        values[kind] = stored = tensor.reshape(-1).numpy()[at]
        if stored.size and not 0 <= stored.min() <= stored.max() < (
            2 if kind == "sign" else 1 << 31
        ):
            raise ValueError(f"{kind}/{name} holds a number out of its range")
    sign, draw = values["sign"], values["draw"]
    return TicketLayer(
        source=entry.source,
        kept=Bits.of(kept),
        pattern=entry.pattern,
        dynamic_scale=entry.dynamic_scale,
        tied=entry.tied,
        flips=None if sign is None or not sign.any() else Bits.of(sign.astype(bool)),
        draws=None if draw is None or not draw.any() else draw,
    )


def _read(path: Path) -> dict[str, Any]:
    return read_tensors(path, ours=False)[1] if path.is_file() else {}
