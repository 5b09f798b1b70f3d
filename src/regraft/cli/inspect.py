"""`regraft ticket inspect`: what a ticket file holds, byte by byte."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from .json_option import Values
from .options import Options, OutputOptions
from .output import print_json, say, table


@dataclass(frozen=True, kw_only=True)
class Inspect(Options):
    """Show a ticket: seed, laws, layers, and its bytes against dense weights and a plain mask."""

    ticket: Annotated[Path, tyro.conf.Positional]
    """The ticket file, or the run folder that holds it."""
    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Read the file and tell."""
        from regraft.jobs.ticket.describe import describe, layers_of
        from regraft.tickets import load_ticket

        held = describe(load_ticket(self.ticket))
        if self.output.json:
            print_json(held)
            return 0
        model = held["model"]
        of = model["name"] if isinstance(model, dict) and "name" in model else "an unnamed network"
        known = [str(held[k]) for k in ("method", "data") if held[k] is not None]
        say(f"{self.ticket}: {' on '.join(known) or 'a ticket'}, {of}")
        laws = sorted({m["init"] for m in held["masks"]})
        say(f"{', '.join(laws)}, seed {held['seed']}, stream {held['stream']}")
        say()
        layers = layers_of(held)
        table(list(layers.headings), layers.texts)
        say(layers.note)
        say()
        _bytes(held)
        return 0


def _bytes(held: Values) -> None:
    from regraft.report.wording import size

    total = held["bytes"]
    lines = [[part, size(n), f"{n / total:.1%}"] for part, n in held["parts"].items() if n]
    lines += [["all", size(total), "100%"]]
    lines += [[name, size(n), f"{n / total:.1f}x"] for name, n in held["against"].items()]
    lines += [["entropy bound of masks and draws", size(held["entropy_bound"]), ""]]
    table(["bytes of", "size", "share"], lines)
