"""What packed tickets of a torchvision network take and how fast they are read; part of `freezing.py`."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from regraft.tickets import (
    Freezing,
    bake,
    edge_popup,
    fill,
    load_ticket,
    named_masks,
    save_ticket,
    stored_bytes,
)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A packed ticket of one law and frozen share; bytes, and seconds on one thread.

    Attributes:
        bound_bytes: The sum over layers of n H(d), n the free positions and d their density.
        masks_bytes: What the coded masks take.
        state_bytes: What normalisation statistics, biases and other data-dependent tensors take.
        file_bytes: The whole file.
        overhead: Everything in the file but the state, over the bound.
        one_bit_bytes: One bit for each free weight, uncoded.
        dense_bytes: The network in float32.
        load_seconds: Reading and decoding the file.
        ready_seconds: That, building the network and filling it.
        n: Number of unpackings, of which the medians are given.
    """

    setting: str
    law: str
    frozen: float
    bound_bytes: int
    masks_bytes: int
    state_bytes: int
    file_bytes: int
    overhead: float
    one_bit_bytes: int
    dense_bytes: int
    load_seconds: float
    ready_seconds: float
    n: int


def packed(name: str, repeats: int) -> list[Packed]:
    """Pack and unpack a torchvision network at s = 0.7, with either law and F = 0 and 0.5."""
    from torchvision import models

    def make() -> nn.Module:
        return models.get_model(name)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for law in ("signed_kaiming_constant", "kaiming_uniform"):
        for frozen in (0.0, 0.5):
            freezing = Freezing.balanced(sparsity=0.7, frozen=frozen) if frozen else None
            model = edge_popup(make(), sparsity=0.7, weight_init=law, freezing=freezing, seed=0)
            model(torch.randn(4, 3, 64, 64))  # statistics that no seed gives back
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.ticket"
                size = save_ticket(path, model)
                rows.append(_unpacked(name, law, frozen, model, path, size, make, repeats))
            print(f"{name}, {law}, F={frozen:g}: {rows[-1].ready_seconds:.2f} s", flush=True)
    torch.set_num_threads(threads)
    return rows


def _unpacked(
    name: str,
    law: str,
    frozen: float,
    model: nn.Module,
    path: Path,
    size: int,
    make: Callable[[], nn.Module],
    repeats: int,
) -> Packed:
    loads, readies = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        ticket = load_ticket(path)
        loads.append(time.perf_counter() - start)
        filled = fill(make(), ticket)
        readies.append(time.perf_counter() - start)
    expected = bake(model).state_dict()
    if not all(torch.equal(t, expected[key]) for key, t in filled.state_dict().items()):
        raise SystemExit(f"{name}, {law}, F={frozen:g}: the unpacked network is another one")
    parts = ticket.bytes_by_part()
    searched = sum(entry.original.numel() for _, entry, _ in named_masks(model))
    return Packed(
        setting=f"{name}, s=0.7",
        law=law,
        frozen=frozen,
        bound_bytes=ticket.entropy_bound(),
        masks_bytes=parts["masks"],
        state_bytes=parts["state"],
        file_bytes=size,
        overhead=(size - parts["state"]) / ticket.entropy_bound(),
        one_bit_bytes=-(-searched // 8),
        dense_bytes=stored_bytes(filled),
        load_seconds=statistics.median(loads),
        ready_seconds=statistics.median(readies),
        n=repeats,
    )


def packed_table(rows: Sequence[Packed]) -> list[str]:
    """Return the lines of the table of packed files."""
    lines = [
        "| setting | law | F | entropy bound | masks | other tensors | file | overhead | 1 bit a free weight | float32 | load, s | ready, s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {r.setting} | {r.law} | {r.frozen:g} | {r.bound_bytes:,} | {r.masks_bytes:,} | "
        f"{r.state_bytes:,} | {r.file_bytes:,} | {r.overhead:.4f} | {r.one_bit_bytes:,} | "
        f"{r.dense_bytes:,} | {r.load_seconds:.2f} | {r.ready_seconds:.2f} |"
        for r in rows
    ]
    return lines
