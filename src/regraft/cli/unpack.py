"""`regraft ticket unpack`: a ticket as JSON and safetensors, for a person or another tool."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from .options import Options, OutputOptions, default_out
from .output import print_json, say


@dataclass(frozen=True, kw_only=True)
class Unpack(Options):
    """Write a ticket as a folder: ticket.json, and masks, draws and state as safetensors.

    `regraft ticket pack FOLDER` makes the same file of it again, to the byte.
    """

    ticket: Annotated[Path, tyro.conf.Positional]
    """The ticket file, or the run folder that holds it."""
    out: Path | None = None
    """Folder to make; runs/unpack-NAME without it."""
    force: bool = False
    """Unpack also a ticket that claims millions of weights in a few bytes."""
    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Read the ticket and write its parts."""
        from regraft.tickets import load_ticket, write_unpacked

        out = self.out or default_out("unpack", self.ticket)
        write_unpacked(out, load_ticket(self.ticket), force=self.force)
        sizes = {p.name: p.stat().st_size for p in sorted(out.iterdir())}
        if self.output.json:
            print_json({"out": str(out), "files": sizes})
        else:
            say(f"{out}: {', '.join(sizes)}")
        return 0
