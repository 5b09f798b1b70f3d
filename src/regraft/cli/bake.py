"""`regraft ticket bake`: from a ticket to plain weights that need nothing of Regraft."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from regraft.jobs.predict.network import network_of

from .options import Options, OutputOptions, default_out
from .output import print_json, say


@dataclass(frozen=True, kw_only=True)
class Bake(Options):
    """Write the ticket's network as a plain safetensors state dict with zeroed weights."""

    ticket: Annotated[Path, tyro.conf.Positional]
    """The ticket file, or the run folder that holds it."""
    out: Path | None = None
    """File to write; runs/bake-NAME.safetensors without it."""
    model: str | None = None
    """Build this network instead of the ticket's own: a name or package.module:factory."""
    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Rebuild the weights, check them against the architecture, and write them."""
        from regraft.checkpoints.write import write_model
        from regraft.report.wording import size
        from regraft.tickets import load_ticket

        ticket = load_ticket(self.ticket)
        state = network_of(ticket, self.ticket, self.model).state_dict()
        out = self.out or default_out("bake", self.ticket).with_suffix(".safetensors")
        write_model(out, state, ticket.about)
        bytes_written = out.stat().st_size
        if self.output.json:
            print_json({"out": str(out), "bytes": bytes_written, "tensors": len(state)})
        else:
            say(f"{out}: {len(state)} tensors, {size(bytes_written)}")
        return 0
