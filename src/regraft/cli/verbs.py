"""The tree of verbs; each verb is a dataclass with `run()`, in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from .align import Align
from .bake import Bake
from .condense import Condense
from .data import Get, List
from .doctor import Doctor
from .evaluate import Evaluate
from .find import Find
from .finetune import Finetune
from .inspect import Inspect
from .merge import Merge
from .pack import Pack
from .predict import Predict
from .report import Report
from .reproduce import Reproduce
from .run import Run
from .transfer import Transfer
from .unpack import Unpack


@dataclass(frozen=True)
class Ticket:
    """Strong lottery tickets: good subnetworks of random networks."""

    verb: (
        Annotated[Find, tyro.conf.subcommand("find")]
        | Annotated[Inspect, tyro.conf.subcommand("inspect")]
        | Annotated[Run, tyro.conf.subcommand("run")]
        | Annotated[Bake, tyro.conf.subcommand("bake")]
        | Annotated[Pack, tyro.conf.subcommand("pack")]
        | Annotated[Unpack, tyro.conf.subcommand("unpack")]
    )

    def run(self) -> int:
        """Run the verb."""
        return self.verb.run()


@dataclass(frozen=True)
class Data:
    """Known data sets: which are here, and how to get the others."""

    verb: (
        Annotated[List, tyro.conf.subcommand("list")] | Annotated[Get, tyro.conf.subcommand("get")]
    )

    def run(self) -> int:
        """Run the verb."""
        return self.verb.run()


_Verb = (
    Annotated[Ticket, tyro.conf.subcommand("ticket")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Align, tyro.conf.subcommand("align")]
    | Annotated[Transfer, tyro.conf.subcommand("transfer")]
    | Annotated[Condense, tyro.conf.subcommand("condense")]
    | Annotated[Finetune, tyro.conf.subcommand("finetune")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)
VERBS = tyro.conf.OmitSubcommandPrefixes[
    tyro.conf.OmitArgPrefixes[tyro.conf.FlagCreatePairsOff[_Verb]]
]
