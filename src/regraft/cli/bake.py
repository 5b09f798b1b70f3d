"""`regraft ticket bake`: from a ticket to plain weights that need nothing of Regraft."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from .output import print_json, say


@dataclass(frozen=True, kw_only=True)
class Bake:
    """Write the ticket's network as a plain safetensors state dict with zeroed weights."""

    ticket: Annotated[Path, tyro.conf.Positional]
    """The ticket file, or the run folder that holds it."""
    out: Path
    """File to write, e.g. model.safetensors."""
    model: str | None = None
    """Check against another model than the ticket's own: a name or package.module:factory."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> int:
        """Rebuild the weights, check them against the architecture, and write them."""
        from regraft.config import ModelConfig
        from regraft.errors import InputError
        from regraft.files import write_tensors
        from regraft.models import build
        from regraft.report.wording import size
        from regraft.tickets import fill, load_ticket

        ticket = load_ticket(self.ticket)
        header = ticket.header
        missing = [k for k in ("model", "classes", "input") if k not in header]
        if missing:
            raise InputError(
                f"{self.ticket} does not say which {missing[0]} it is of, so it was saved by a program: "
                "fill its model there, with regraft.tickets.fill(model, load_ticket(path))"
            )
        config = ModelConfig(**header["model"])
        if self.model is not None:
            config = replace(config, name=self.model)
        network = build(config, num_classes=len(header["classes"]), **header["input"])
        state = fill(network, ticket).state_dict()
        about = {k: v for k, v in header.items() if k not in ("masks", "stream", "schema")}
        tensors = {k: v.contiguous().clone() for k, v in state.items()}
        write_tensors(self.out, tensors, {"regraft.model": jsonlib.dumps(about)})
        found = {"out": str(self.out), "bytes": self.out.stat().st_size, "tensors": len(tensors)}
        if self.json:
            print_json(found)
        else:
            say(f"{self.out}: {found['tensors']} tensors, {size(found['bytes'])}")
        return 0
