"""What a ticket holds, as numbers: its layers, its bytes, and what else would hold as much."""

from __future__ import annotations

from typing import Any

from regraft import streams
from regraft.report.document import Table


def describe(ticket: Any) -> dict[str, Any]:
    """Return what `regraft ticket inspect` shows of a ticket, as JSON."""
    masks = []
    for name, layer in ticket.layers.items():
        source, n, free = layer.source, layer.source.numel, layer.kept.n
        bits = layer.entropy()
        masks.append(
            {
                "name": name,
                "shape": list(source.shape),
                "sparsity": 1 - layer.nonzero / n,
                "init": source.init,
                "seed": source.seed,
                "pruned": layer.pruned / n,
                "locked": layer.locked / n,
                "free": free,
                "density": layer.kept.ones / free if free else 0.0,
                "bits_per_free_weight": sum(bits.values()) / free if free else 0.0,
                "entropy_bytes": {part: b / 8 for part, b in bits.items()},
                "dynamic_scale": layer.dynamic_scale,
                "tied": list(layer.tied),
            }
        )
    weights = sum(layer.source.numel for layer in ticket.layers.values())
    searched = sum(layer.kept.n for layer in ticket.layers.values())
    state = sum(t.numel() * t.element_size() for t in ticket.state.values())
    about = ticket.about
    return {
        "method": about.get("method"),
        "data": about.get("data"),
        "model": about.get("model", {"name": "unknown"}),
        "classes": about.get("classes"),
        "schema": ticket.header.get("schema"),
        "stream": ticket.header.get("stream", streams.VERSION),
        "seed": next(iter(ticket.layers.values())).source.seed,
        "masks": masks,
        "weights": weights,
        "free_weights": searched,
        "bytes": ticket.size,
        "parts": ticket.bytes_by_part(),
        "entropy_bound": ticket.entropy_bound(),
        "against": {
            "dense float32": 4 * weights + state,
            "dense int8": weights + state,
            "1-bit mask": -(-searched // 8) + state,
        },
    }


def layers_of(held: dict[str, Any]) -> Table:
    """Return the layers of what `describe` returned, a row each."""
    shares = ("pruned", "locked", "sparsity", "density", "bits_per_free_weight")
    return Table(
        title="The ticket",
        headings=("weight", "shape", *shares[:-1], "bits"),
        rows=[
            [m["name"], "x".join(map(str, m["shape"])), *(f"{m[k]:.4f}" for k in shares)]
            for m in held["masks"]
        ],
        note="pruned, locked: shares frozen; density: kept share of the free; bits: for a free weight",
    )
