"""`regraft ticket pack`: a packed ticket from a run, a state dict, an older ticket or a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from .json_option import json_object
from .options import NormalisedOptions, Options, OutputOptions, default_out
from .output import print_json, say


@dataclass(frozen=True, kw_only=True)
class Pack(Options):
    """Write a packed ticket: entropy-coded masks, a seed, and what no seed gives back.

    The options say what the source does not: what the network is, and what it is fed.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """A run folder, a ticket of any version, a folder of `ticket unpack`, or a masked model's
    state dict as safetensors."""
    out: Path | None = None
    """File to write; runs/pack-NAME.ticket without it."""
    model: str | None = None
    """A built-in network, timm/NAME, torchvision/NAME or package.module:factory."""
    width: float | None = None
    """Width factor of a built-in network."""
    model_options: str | None = None
    """Further keyword arguments of the model's factory, as a JSON object."""
    num_classes: int | None = None
    """Number of classes."""
    class_names: str | None = None
    """Instead: the names of the classes in order, separated by commas."""
    data_root: str | None = None
    """Of an unfinished run: folder of the known data sets."""
    images: NormalisedOptions = field(default_factory=NormalisedOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Gather the ticket, add what was said, and write it."""
        from regraft.jobs.ticket.pack import Description, described
        from regraft.report.wording import size
        from regraft.tickets import write_ticket

        names = self.class_names
        said = Description(
            model=self.model,
            width=self.width,
            options=None if self.model_options is None else json_object(self.model_options),
            num_classes=self.num_classes,
            class_names=() if names is None else tuple(n.strip() for n in names.split(",")),
            images=self.images.config(),
        )
        ticket = described(self.source, said, data_root=self.data_root)
        out = self.out or default_out("pack", self.source).with_suffix(".ticket")
        written = write_ticket(out, ticket)
        bound = ticket.entropy_bound()
        if self.output.json:
            print_json({"out": str(out), "bytes": written, "entropy_bound": bound})
        else:
            say(f"{out}: {size(written)}, entropy bound of masks and draws {size(bound)}")
        return 0
