"""`regraft ticket unpack`: a ticket as JSON and safetensors, for a person or another tool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .output import print_json, say


@dataclass(frozen=True, kw_only=True)
class Unpack:
    """Write a ticket as a folder: ticket.json, and masks, draws and state as safetensors.

    `regraft ticket pack FOLDER` makes the same file of it again, to the byte.
    """

    ticket: Annotated[Path, tyro.conf.Positional]
    """The ticket file, or the run folder that holds it."""
    out: Path
    """Folder to make."""
    force: bool = False
    """Unpack also a ticket that claims millions of weights in a few bytes."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> int:
        """Read the ticket and write its parts."""
        from regraft.tickets import load_ticket, write_unpacked

        write_unpacked(self.out, load_ticket(self.ticket), force=self.force)
        sizes = {p.name: p.stat().st_size for p in sorted(self.out.iterdir())}
        if self.json:
            print_json({"out": str(self.out), "files": sizes})
        else:
            say(f"{self.out}: {', '.join(sizes)}")
        return 0
