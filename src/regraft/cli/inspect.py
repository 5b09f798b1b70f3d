"""`regraft ticket inspect`: what a ticket file holds, byte by byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from .output import print_json, say, table


@dataclass(frozen=True)
class Inspect:
    """Show a ticket: seed, laws, layers, and its bytes against dense weights and a plain mask."""

    ticket: Annotated[Path, tyro.conf.Positional]
    """The ticket file, or the run folder that holds it."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> int:
        """Read the file and tell."""
        from regraft.tickets import load_ticket

        found = describe(load_ticket(self.ticket))
        if self.json:
            print_json(found)
            return 0
        model = found["model"]
        of = model["name"] if isinstance(model, dict) and "name" in model else "an unnamed network"
        known = [str(found[k]) for k in ("method", "data") if found[k] is not None]
        say(f"{self.ticket}: {' on '.join(known) or 'a ticket'}, {of}")
        laws = sorted({m["init"] for m in found["masks"]})
        say(f"{', '.join(laws)}, seed {found['seed']}, stream {found['stream']}")
        say()
        _layers(found)
        say()
        _bytes(found)
        return 0


def _layers(found: dict[str, Any]) -> None:
    shares = ("pruned", "locked", "sparsity", "density", "bits_per_free_weight")
    lines = [
        [m["name"], "x".join(map(str, m["shape"])), *(f"{m[k]:.4f}" for k in shares)]
        for m in found["masks"]
    ]
    table(["weight", "shape", *shares[:-1], "bits"], lines)
    say("pruned, locked: shares frozen; density: kept share of the free; bits: for a free weight")


def _bytes(found: dict[str, Any]) -> None:
    from regraft.report.wording import size

    total = found["bytes"]
    lines = [[part, size(n), f"{n / total:.1%}"] for part, n in found["parts"].items() if n]
    lines += [["all", size(total), "100%"]]
    lines += [[name, size(n), f"{n / total:.1f}x"] for name, n in found["against"].items()]
    lines += [["entropy bound of masks and draws", size(found["entropy_bound"]), ""]]
    table(["bytes of", "size", "share"], lines)


def describe(ticket: Any) -> dict[str, Any]:
    """Return the JSON form of what is shown."""
    from regraft import streams

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
