"""The JSON header of a packed ticket: written from a `Ticket`, and read without trusting it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regraft import streams
from regraft.errors import InputError
from regraft.tickets.freeze import FrozenPattern
from regraft.tickets.source import WeightSource
from regraft.tickets.ticket import Ticket, TicketLayer

from .coder import MAX_SYMBOLS

SCHEMA = 2
CODER = "rans-24"
"""64-bit state, 32-bit words, frequencies of 24 bits; see `regraft.tickets.file.coder`."""
PARTS = ("masks", "signs", "draws", "state")

_MAX_WEIGHTS = 1 << 32
_MAX_GAIN = 1e18  # weights and their sums stay far inside float32


@dataclass(frozen=True)
class Part:
    """Where a part ends and what it must turn out to be.

    Attributes:
        size: Bytes in the file.
        check: BLAKE2b of 4 bytes, in hex, of what it decodes to.
        plain: Bytes of the state before deflating; 0 for other parts.
    """

    size: int = 0
    check: str = ""
    plain: int = 0


@dataclass(frozen=True)
class HeaderLayer:
    """A masked weight as the header has it.

    Attributes:
        source: Where W comes from.
        pattern: What is frozen.
        dynamic_scale: Whether the weight is scaled by the kept share.
        tied: Further names of the parameter.
        kept: Ones among the searched positions.
        flips: Signs that differ from the first draw's; None where none was stored.
        table: Index of the table of events; None where none was stored.
    """

    source: WeightSource
    pattern: FrozenPattern | None
    dynamic_scale: bool
    tied: tuple[str, ...]
    kept: int
    flips: int | None
    table: int | None

    @property
    def searched(self) -> int:
        """Number of positions with a mask bit."""
        return self.source.numel if self.pattern is None else self.pattern.searched


@dataclass(frozen=True)
class Header:
    """A header whose every value has been looked at."""

    layers: dict[str, HeaderLayer]
    parts: dict[str, Part]
    tables: tuple[int, ...]
    table_bytes: int
    aliases: dict[str, str]
    about: dict[str, Any]


def describe(ticket: Ticket, table_of: Mapping[str, int]) -> dict[str, Any]:
    """Return the header of a ticket but for its parts.

    What is alike in most layers is said once, for all that do not say otherwise.

    Args:
        ticket: The ticket.
        table_of: By layer the index of its table of events.
    """
    layers = ticket.layers
    common = {
        key: Counter(_common(layer)[key] for layer in layers.values()).most_common(1)[0][0]
        for key in ("seed", "law", "gain", "dynamic_scale")
    }
    masks: dict[str, dict[str, Any]] = {}
    for name, layer in layers.items():
        entry: dict[str, Any] = {"shape": list(layer.source.shape), "kept": layer.kept.ones}
        if layer.pattern is not None:
            entry |= {"pruned": layer.pruned, "locked": layer.locked}
        if layer.source.name != name:
            entry["stream_name"] = layer.source.name
        if layer.tied:
            entry["tied"] = list(layer.tied)
        if layer.flips is not None:
            entry["flips"] = layer.flips.ones
        if name in table_of:
            entry["table"] = table_of[name]
        masks[name] = entry | {k: v for k, v in _common(layer).items() if v != common[k]}
    return {
        "schema": SCHEMA,
        "stream": streams.VERSION,
        "coder": CODER,
        **common,
        "masks": masks,
        **({"aliases": ticket.aliases} if ticket.aliases else {}),
        "about": ticket.about,
    }


def _common(layer: TicketLayer) -> dict[str, Any]:
    source = layer.source
    return {
        "seed": source.seed,
        "law": source.init,
        "gain": source.gain,
        "dynamic_scale": layer.dynamic_scale,
    }


def read_header(raw: Any, name: str) -> Header:
    """Return a header that came from JSON.

    Raises:
        InputError: Another stream version, coder or schema.
        ValueError: Anything that no honest header holds.
    """
    if not isinstance(raw, dict):
        raise ValueError("its header is no JSON object")
    if raw.get("stream") != streams.VERSION or raw.get("coder") != CODER:
        raise InputError(
            f"{name} needs stream {raw.get('stream')!r} and coder {raw.get('coder')!r}, this version "
            f"has {streams.VERSION} and {CODER!r}: update regraft"
        )
    if raw.get("schema") != SCHEMA:
        raise InputError(
            f"{name} has schema {str(raw.get('schema'))[:40]}, this version reads {SCHEMA} there: update "
            "regraft"
        )
    try:
        layers = {key: _layer(key, e, raw) for key, e in _of(raw, "masks", dict).items()}
    except InputError as error:
        raise ValueError(str(error)) from error
    if not layers or sum(layer.source.numel for layer in layers.values()) >= _MAX_WEIGHTS:
        raise ValueError("its header has no masks, or more than can be")
    names = [n for key, layer in layers.items() for n in (key, *layer.tied)]
    aliases = _of(raw, "aliases", dict, {})
    if not all(isinstance(v, str) for v in aliases.values()):
        raise ValueError("its header's aliases are no names")
    for text in (*names, *aliases, *aliases.values(), *(e.source.name for e in layers.values())):
        if not _is_unicode(text):
            raise ValueError(f"its header has the name {text!a}, which is no Unicode text")
    if len({*names, *aliases}) != len(names) + len(aliases):
        raise ValueError("its header names a tensor twice")
    parts = {k: _part(k, _of(raw, "parts", dict, {}).get(k)) for k in PARTS}
    tables = tuple(_of(raw, "tables", list, []))
    for symbols in tables:
        _natural(symbols, "tables", MAX_SYMBOLS)
    used = {layer.table for layer in layers.values() if layer.table is not None}
    if used != set(range(len(tables))):
        raise ValueError("its header's tables are not those that its masks use")
    table_bytes = _natural(raw.get("table_bytes", 0), "table_bytes", parts["draws"].size)
    about = _of(raw, "about", dict)
    return Header(layers, parts, tables, table_bytes, aliases, about)


def _layer(name: str, entry: Any, common: Mapping[str, Any]) -> HeaderLayer:
    if not isinstance(entry, dict):
        raise ValueError(f"its mask {name!r} is no JSON object")
    every = {**{k: common.get(k) for k in ("seed", "law", "gain", "dynamic_scale")}, **entry}
    shape = _of(entry, "shape", list)
    if not 2 <= len(shape) <= 8:
        raise ValueError(f"its mask {name!r} has {len(shape)} dimensions")
    for size in shape:
        _natural(size, "shape", _MAX_WEIGHTS)
    numel = math.prod(shape)
    gain = _of(every, "gain", (int, float))
    if not 0 < numel < _MAX_WEIGHTS or not abs(gain) < _MAX_GAIN:
        raise ValueError(f"its mask {name!r} has a size or gain that cannot be")
    stream_name = _of(entry, "stream_name", str, name)
    seed = _of(every, "seed", int)
    source = WeightSource(_of(every, "law", str), seed, stream_name, tuple(shape), float(gain))
    counts = [_natural(entry.get(k, 0), k, numel) for k in ("pruned", "locked")]
    pattern = FrozenPattern(seed, stream_name, numel, *counts) if any(counts) else None
    kept = _natural(entry.get("kept"), "kept", numel - sum(counts))
    tied = tuple(_of(entry, "tied", list, []))
    if not all(isinstance(t, str) for t in tied):
        raise ValueError(f"its mask {name!r} is tied to what is no name")
    flips, table = entry.get("flips"), entry.get("table")
    return HeaderLayer(
        source=source,
        pattern=pattern,
        dynamic_scale=_of(every, "dynamic_scale", bool),
        tied=tied,
        kept=kept,
        flips=None if flips is None else _natural(flips, "flips", kept),
        table=None if table is None else _natural(table, "table", MAX_SYMBOLS),
    )


def _part(name: str, entry: Any) -> Part:
    if entry is None:
        return Part()
    if not isinstance(entry, dict):
        raise ValueError(f"its part {name!r} is no JSON object")
    sizes = [_natural(entry.get(k, 0), k, _MAX_WEIGHTS) for k in ("bytes", "plain")]
    return Part(sizes[0], _of(entry, "check", str), sizes[1])


def _is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which JSON lets through and UTF-8 does not."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _of(raw: Mapping[str, Any], key: str, kind: Any, default: Any = None) -> Any:
    value = raw.get(key, default)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"its header's {key!r} is {type(value).__name__}")
    return value


def _natural(value: Any, key: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"its header's {key!r} is {str(value)[:40]}, not in [0, {most}]")
    return value
