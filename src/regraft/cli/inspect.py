"""`regraft ticket inspect`: what a ticket file holds, byte by byte."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from .output import print_json, say, table


@dataclass(frozen=True)
class Inspect:
    """Show a ticket: seed, law, sparsity of each layer, and its bytes against dense weights."""

    ticket: Annotated[Path, tyro.conf.Positional]
    """The ticket file, or the run folder that holds it."""
    json: bool = False
    """Print one JSON object instead of tables."""

    def run(self) -> int:
        """Read the file and tell."""
        from regraft.report.wording import size
        from regraft.tickets import load_ticket

        found = describe(load_ticket(self.ticket))
        if self.json:
            print_json(found)
            return 0
        say(f"{self.ticket}: {found['method']} on {found['data']}, {found['model']['name']}")
        lines = [
            [m["name"], "x".join(map(str, m["shape"])), f"{m['sparsity']:.4f}", m["init"], str(m["seed"])]
            for m in found["masks"]
        ]  # fmt: skip
        table(["weight", "shape", "sparsity", "law", "seed"], lines)
        say()
        total = found["bytes"]
        lines = [[part, size(n), f"{n / total:.1%}"] for part, n in found["parts"].items() if n]
        lines += [["all", size(total), "100%"]]
        lines += [[name, size(n), f"{n / total:.1f}x"] for name, n in found["against"].items()]
        table(["bytes of", "size", "share"], lines)
        return 0


def describe(ticket: Any) -> dict[str, Any]:
    """Return the JSON form of what is shown."""
    masks = []
    for name, entry in ticket.header["masks"].items():
        source = entry["source"]
        n = math.prod(source["shape"])
        masks.append(
            {
                "name": name,
                "shape": list(source["shape"]),
                "sparsity": 1 - entry["kept"] / n,
                "init": source["init"],
                "seed": source["seed"],
            }
        )
    weights = sum(math.prod(m["shape"]) for m in masks)
    parts = ticket.bytes_by_part()
    return {
        "method": ticket.header.get("method"),
        "data": ticket.header.get("data"),
        "model": ticket.header.get("model", {"name": "unknown"}),
        "classes": ticket.header.get("classes"),
        "schema": ticket.header["schema"],
        "stream": ticket.header["stream"],
        "masks": masks,
        "weights": weights,
        "bytes": ticket.size,
        "parts": parts,
        "against": {
            "dense float32": 4 * weights + parts["state"],
            "dense int8": weights + parts["state"],
        },
    }
