"""Event numbers of re-randomised weights, entropy-coded by the frequencies they occur with.

A table lists the events that occur and how often. A large layer is worth a table of its own; small
ones share one, which costs a little in code and saves their tables.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from regraft.errors import InputError

from .coder import MAX_SYMBOLS, Decoder, Encoder, entropy_bits, table_of_counts


@dataclass(frozen=True)
class Tables:
    """The tables of a file.

    Attributes:
        symbols: Number of events in each table.
        of: For each coded layer the index of its table.
        data: All tables, deflated.
    """

    symbols: tuple[int, ...]
    of: tuple[int, ...]
    data: bytes


def push_draws(encoder: Encoder, draws: Sequence[np.ndarray]) -> Tables:
    """Push the event numbers of each layer and return the tables they were coded with.

    Args:
        encoder: The stack; the first layer comes out first.
        draws: Event numbers from 0 up, integers, one array a layer.

    Raises:
        InputError: More different events than a table can hold.
    """
    events = np.unique(np.concatenate([np.unique(d) for d in draws])) if draws else np.empty(0)
    if len(events) > MAX_SYMBOLS:
        raise InputError(
            f"the ticket has {len(events)} different re-randomisation events: a file holds up to "
            f"{MAX_SYMBOLS}, so re-randomise less often"
        )
    symbols = [np.searchsorted(events, d) for d in draws]
    counts = [np.bincount(s, minlength=len(events)) for s in symbols]
    own = _worth_a_table(counts)
    shared = sum((c for c, alone in zip(counts, own, strict=True) if not alone), 0 * events)
    pooled = [c if alone else shared for c, alone in zip(counts, own, strict=True)]
    tables: list[np.ndarray] = []
    of = []
    for table in pooled:
        known = next((i for i, t in enumerate(tables) if t is table), None)
        of.append(len(tables) if known is None else known)
        tables += [table] if known is None else []
    for layer, index in reversed(list(zip(symbols, of, strict=True))):
        there = np.flatnonzero(tables[index])
        if len(there) > 1:
            encoder.push(np.searchsorted(there, layer), table_of_counts(tables[index][there]))
    blocks = [_block(events, table) for table in tables]
    sizes = tuple(int(np.count_nonzero(table)) for table in tables)
    return Tables(sizes, tuple(of), zlib.compress(b"".join(blocks), 9) if blocks else b"")


def pop_draws(decoder: Decoder, sizes: Sequence[int], tables: Tables) -> list[np.ndarray]:
    """Return the event numbers of each layer, int16 or int32 [sizes[i]]; see `push_draws`.

    Raises:
        ValueError: Tables that are damaged or do not fit the numbers of weights.
    """
    inflate = zlib.decompressobj()
    length = 8 * sum(tables.symbols)
    plain = inflate.decompress(tables.data, length + 1)
    if len(plain) != length or not inflate.eof or inflate.unused_data:
        raise ValueError("its tables of events have another length than its header says")
    read, at = [], 0
    for symbols in tables.symbols:
        read.append(_read_block(plain[at : at + 8 * symbols], symbols))
        at += 8 * symbols
    for index, (_, counts) in enumerate(read):
        weights = sum(n for n, of in zip(sizes, tables.of, strict=True) if of == index)
        if int(counts.sum()) != weights:
            raise ValueError("its tables of events do not add up to its weights")
    out = []
    for n, index in zip(sizes, tables.of, strict=True):
        events, counts = read[index]
        if len(events) == 1:
            out.append(np.full(n, events[0]))
        else:
            out.append(events[decoder.pop(n, table_of_counts(counts))])
    return out


def _worth_a_table(counts: Sequence[np.ndarray]) -> list[bool]:
    """Return which layers are smaller with a table of their own than with everybody's."""
    if len(counts) < 2:
        return [False] * len(counts)
    total = sum(counts, np.zeros_like(counts[0]))
    bits = np.log2(int(total.sum())) - np.log2(total)
    return [
        math.fsum(c * bits)
        > entropy_bits(c) + 8 * len(zlib.compress(_block(np.arange(len(c)), c), 9))
        for c in counts
    ]


def _block(events: np.ndarray, counts: np.ndarray) -> bytes:
    """Return [gaps between events, counts] of those that occur, their bytes sorted by place."""
    there = np.flatnonzero(counts)
    gaps = np.diff(events[there], prepend=0)
    words = np.concatenate([gaps, counts[there]]).astype("<u4")
    return words.view(np.uint8).reshape(-1, 4).T.tobytes()


def _read_block(block: bytes, symbols: int) -> tuple[np.ndarray, np.ndarray]:
    planes = np.frombuffer(block, dtype=np.uint8).reshape(4, -1)
    words = np.ascontiguousarray(planes.T).view("<u4").ravel().astype(np.int64)
    gaps, counts = words[:symbols], words[symbols:]
    events = np.cumsum(gaps)
    if not symbols or (gaps[1:] == 0).any() or (counts == 0).any() or events[-1] >= 1 << 31:
        raise ValueError("its tables of events are not in order")
    return events.astype(np.int16 if events[-1] < 1 << 15 else np.int32), counts
