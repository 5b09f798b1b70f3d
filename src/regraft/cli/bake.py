"""`regraft ticket bake`: from a ticket to plain weights that need nothing of Regraft."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from regraft.jobs.predict.network import network_of

from .output import print_json, say


@dataclass(frozen=True, kw_only=True)
class Bake:
    """Write the ticket's network as a plain safetensors state dict with zeroed weights."""

    ticket: Annotated[Path, tyro.conf.Positional]
    """The ticket file, or the run folder that holds it."""
    out: Path
    """File to write, e.g. model.safetensors."""
    model: str | None = None
    """Build this network instead of the ticket's own: a name or package.module:factory."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> int:
        """Rebuild the weights, check them against the architecture, and write them."""
        from regraft.checkpoints.model_card import header
        from regraft.files import write_tensors
        from regraft.report.wording import size
        from regraft.tickets import load_ticket

        ticket = load_ticket(self.ticket)
        state = network_of(ticket, self.ticket, self.model).state_dict()
        tensors = {k: v.contiguous().clone() for k, v in state.items()}
        write_tensors(self.out, tensors, header(ticket.about))
        found = {"out": str(self.out), "bytes": self.out.stat().st_size, "tensors": len(tensors)}
        if self.json:
            print_json(found)
        else:
            say(f"{self.out}: {found['tensors']} tensors, {size(found['bytes'])}")
        return 0
