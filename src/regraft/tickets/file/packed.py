"""The packed ticket file: bytes to a `Ticket` and back; `docs/ticket_file.md` has every byte of it.

    magic (8)  schema (2)  bytes of the header, deflated and plain (4 + 4)
    header     JSON, deflated: streams, laws, seed, shapes, counts, what the ticket is of
    masks, signs, draws   entropy-coded words of 32 bits
    state      a safetensors file, deflated
    BLAKE2b (16) of everything before it

All numbers are little-endian. Reading checks the digest first and then trusts nothing: every length
is bounded before anything is allocated, and what is decoded must match counts and checksums.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from regraft.errors import InputError
from regraft.files import write_bytes
from regraft.tickets.gather import gather
from regraft.tickets.ticket import Ticket, TicketLayer

from .coder import Decoder, Encoder
from .events import Tables, pop_draws, push_draws
from .header import PARTS, SCHEMA, Header, Part, describe, read_header

MAGIC = b"\x89tkt\r\n\x1a\n"
SUFFIX = ".ticket"

_FIXED = struct.Struct("<8sHII")
_DIGEST = 16
_MAX_FILE = 1 << 32
_MAX_HEADER = 1 << 24


def save_ticket(
    path: Path | str, model: nn.Module, *, about: Mapping[str, Any] | None = None
) -> int:
    """Write the current ticket of an edge-popup model and return the bytes of the file.

    Args:
        path: The file, by convention `model.ticket`.
        model: A model masked by `edge_popup`.
        about: JSON values for the header: `model` (what builds it), `classes` and the like.

    Raises:
        InputError: The model has no edge-popup mask, `about` is no JSON, or the path cannot be
            written.
    """
    return write_ticket(path, gather(model, about))


def write_ticket(path: Path | str, ticket: Ticket) -> int:
    """Write a ticket to a packed file and return its bytes; errors as `save_ticket`."""
    data = pack(ticket)
    unpack(data, str(path))  # nothing is written that cannot be read
    write_bytes(path, data)
    return len(data)


def load_ticket(path: Path | str) -> Ticket:
    """Read a ticket file, or the one in a run folder, and check that it is whole.

    Raises:
        InputError: No such file, no ticket, damaged, or from a newer schema or stream version.
    """
    path = find_ticket(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            if start == MAGIC and path.stat().st_size <= _MAX_FILE:
                return unpack(start + file.read(), str(path))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}): give a ticket file that you may read"
        ) from error
    if len(start) == len(MAGIC) and start[4:] == bytes(4):  # the length of a safetensors header
        raise InputError(
            f"{path} is a safetensors file, but not a ticket: `regraft ticket pack` makes one of a masked "
            "model's state"
        )
    raise InputError(
        f"{path} is not a ticket: expected a file that `regraft ticket find` or `regraft ticket pack` wrote"
    )


def find_ticket(path: Path | str) -> Path:
    """Return the ticket file at a path: the file itself, or the one in a run folder.

    Raises:
        InputError: There is none.
    """
    path = Path(path)
    if path.is_dir():
        _tell_other_folders(path)
        path = path / "model.ticket"
    if not path.is_file():
        raise InputError(f"{path}: no such ticket; `regraft ticket find` writes one")
    return path


def _tell_other_folders(folder: Path) -> None:
    """Refuse a folder without a ticket file with what it holds instead."""
    kinds = ("model.ticket", "ticket.safetensors")
    kinds += ("ticket.json", "model.safetensors", "checkpoint.safetensors")
    there = next((name for name in kinds if (folder / name).is_file()), "")
    if there == "ticket.json":
        raise InputError(
            f"{folder} is an unpacked ticket: make a file of it first, with "
            f"`regraft ticket pack {folder} --out model.ticket`"
        )
    if there == "model.safetensors":
        raise InputError(
            f"{folder} holds trained weights, model.safetensors, and no ticket: `regraft predict {folder} "
            "IMAGES` opens them; find a ticket with `regraft ticket find --method iterand`"
        )
    if there == "checkpoint.safetensors":
        raise InputError(
            f"{folder} holds an unfinished run and no ticket: start the same command again to end it, or "
            f"make a ticket of its newest state with `regraft ticket pack {folder} --out model.ticket`"
        )


def pack(ticket: Ticket) -> bytes:
    """Return the bytes of a ticket's file; equal tickets give equal bytes.

    Raises:
        InputError: `about` holds something that is not JSON.
    """
    masks, signs, draws = Encoder(), Encoder(), Encoder()
    layers = ticket.layers
    for layer in reversed(layers.values()):  # what is pushed last comes out first
        masks.push_bits(layer.kept)
        if layer.flips is not None:
            signs.push_bits(layer.flips)
    drawn = {name: layer.draws for name, layer in layers.items() if layer.draws is not None}
    tables = push_draws(draws, list(drawn.values()))
    state = safetensors.torch.save(ticket.state) if ticket.state else b""
    data = {
        "masks": masks.data(),
        "signs": signs.data(),
        "draws": tables.data + draws.data(),
        "state": _deflate(state),
    }
    checks = _checks(ticket.layers)
    checks["state"] = _hex(state)
    header = describe(ticket, dict(zip(drawn, tables.of, strict=True)))
    if tables.symbols:
        header |= {"tables": tables.symbols, "table_bytes": len(tables.data)}
    header["parts"] = {p: {"bytes": len(d), "check": checks[p]} for p, d in data.items() if d}
    if state:
        header["parts"]["state"]["plain"] = len(state)
    try:
        text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"about: {error}; give text, finite numbers, lists and dictionaries"
        ) from error
    short = zlib.compress(text, 9)
    start = _FIXED.pack(MAGIC, SCHEMA, len(short), len(text))
    body = b"".join([start, short, *data.values()])
    return body + _digest(body)


def unpack(data: bytes, name: str = "the data") -> Ticket:
    """Return the ticket in the bytes of a file.

    Args:
        data: The whole file.
        name: What errors call it.

    Raises:
        InputError: No ticket, damaged, or from a newer schema or stream version.
    """
    try:
        return _unpack(data, name)
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, RuntimeError) as error:
        raise _damaged(name, " ".join(str(error).split())) from error
    except (zlib.error, struct.error, safetensors.SafetensorError) as error:
        raise _damaged(name, str(error)) from error


def _unpack(data: bytes, name: str) -> Ticket:
    if data[: len(MAGIC)] != MAGIC:
        raise InputError(
            f"{name} is not a ticket: expected a file that `regraft ticket find` or `regraft ticket pack` "
            "wrote"
        )
    if len(data) < _FIXED.size + _DIGEST:
        raise _damaged(name, f"it ends after {len(data)} bytes")
    body = memoryview(data)[:-_DIGEST]
    _, schema, short, plain = _FIXED.unpack_from(body)
    if _digest(body) != data[-_DIGEST:]:
        newer = f", or from a newer schema ({schema})" if schema > SCHEMA else ""
        raise _damaged(name, f"its bytes do not match its checksum{newer}")
    if schema != SCHEMA:
        raise InputError(
            f"{name} has schema {schema}, this version reads schemas up to {SCHEMA}: update regraft"
        )
    at = _FIXED.size + short
    if at > len(body) or plain > _MAX_HEADER:
        raise ValueError("its header is longer than it can be")
    header = json.loads(_inflate(body[_FIXED.size : at], plain), parse_constant=_refuse_constant)
    contents = read_header(header, name)
    parts = {}
    for part in PARTS:
        parts[part] = bytes(body[at : at + contents.parts[part].size])
        at += contents.parts[part].size
    if at != len(body):
        raise ValueError(f"its parts end at byte {at} of {len(body)}")
    layers = _decode(contents, parts)
    for part, check in _checks(layers).items():
        if parts[part] and check != contents.parts[part].check:
            raise ValueError(f"its {part} decode to other values than were stored")
    state = _read_state(parts["state"], contents.parts["state"])
    _refuse_clashes(layers, state, contents.aliases)
    sizes = {part: len(d) for part, d in parts.items()}
    sizes["header"] = len(data) - sum(sizes.values())
    return Ticket(layers, state, contents.about, contents.aliases, header, sizes)


def _decode(contents: Header, parts: dict[str, bytes]) -> dict[str, TicketLayer]:
    layers = contents.layers
    drawn = {name: layer for name, layer in layers.items() if layer.table is not None}
    _bound("masks", [(e.searched, e.kept) for e in layers.values()], len(parts["masks"]))
    _bound("signs", [(e.kept, e.flips or 0) for e in layers.values()], len(parts["signs"]))
    if sum(e.kept for e in drawn.values()) > (1 << 24) + (len(parts["draws"]) << 13):
        raise ValueError("its header claims more draws than its bytes can hold")
    masks, signs = Decoder(parts["masks"]), Decoder(parts["signs"])
    kept = {name: masks.pop_bits(e.searched, e.kept) for name, e in layers.items()}
    masks.finish()
    flips = {
        name: signs.pop_bits(e.kept, e.flips) for name, e in layers.items() if e.flips is not None
    }
    signs.finish()
    tables = Tables(
        contents.tables,
        tuple(e.table for e in drawn.values() if e.table is not None),
        parts["draws"][: contents.table_bytes],
    )
    draws = Decoder(parts["draws"][contents.table_bytes :])
    popped = pop_draws(draws, [e.kept for e in drawn.values()], tables) if drawn else []
    draws.finish()
    events = dict(zip(drawn, popped, strict=True))
    return {
        name: TicketLayer(
            e.source,
            kept[name],
            e.pattern,
            e.dynamic_scale,
            e.tied,
            flips.get(name),
            events.get(name),
        )
        for name, e in layers.items()
    }


def _bound(part: str, counts: list[tuple[int, int]], size: int) -> None:
    """Refuse more bits than these bytes can stand for, before room is made for them."""
    coded = sum(n for n, ones in counts if 0 < ones < n)
    if coded > (1 << 26) + (size << 14):
        raise ValueError(f"its header claims more {part} than its bytes can hold")


def _read_state(data: bytes, part: Part) -> dict[str, Tensor]:
    if not data:
        return {}
    if part.plain != part.size:
        if _too_deflated(part.size, part.plain):
            raise ValueError("its state is longer than its bytes can hold")
        data = _inflate(data, part.plain)
    if _hex(data) != part.check:
        raise ValueError("its state has another checksum than was stored")
    return safetensors.torch.load(data)


def _refuse_clashes(
    layers: dict[str, TicketLayer], state: dict[str, Tensor], aliases: dict[str, str]
) -> None:
    names = {n for key, layer in layers.items() for n in (key, *layer.tied)} | aliases.keys()
    if twice := names & state.keys():
        raise ValueError(f"it holds the tensor {min(twice)!r} twice")
    if missing := set(aliases.values()) - state.keys():
        raise ValueError(f"it lacks the tensor {min(missing)!r}")


def _deflate(state: bytes) -> bytes:
    short = zlib.compress(state, 9)
    if len(short) >= len(state) or _too_deflated(len(short), len(state)):
        return state
    return short


def _too_deflated(size: int, plain: int) -> bool:
    """Whether so few bytes may not claim so many: the writer then stores them as they are."""
    return plain > (1 << 24) + 64 * size


def _inflate(data: bytes | memoryview, plain: int) -> bytes:
    inflate = zlib.decompressobj()
    out = inflate.decompress(data, plain + 1)
    if len(out) != plain or not inflate.eof or inflate.unused_data:
        raise ValueError("a part inflates to another length than it says")
    return out


def _checks(layers: dict[str, TicketLayer]) -> dict[str, str]:
    """Return short checksums of what masks, signs and draws decode to."""
    hashes = {part: hashlib.blake2b(digest_size=4) for part in ("masks", "signs", "draws")}
    for layer in layers.values():
        for part, bits in (("masks", layer.kept), ("signs", layer.flips)):
            if bits is not None and bits.packed is not None:
                hashes[part].update(bits.packed.data)
        if layer.draws is not None:
            hashes["draws"].update(layer.draws.astype("<i4").data)
    return {part: digest.hexdigest() for part, digest in hashes.items()}


def _hex(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=4).hexdigest()


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def _refuse_constant(text: str) -> None:
    raise ValueError(f"its header holds {text}")


def _damaged(name: str, reason: str) -> InputError:
    return InputError(f"{name} is a damaged ticket ({reason}): copy or write it again")
