"""What `regraft ticket find` runs: a search with defaults that fit the data, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from regraft.checkpoints.write import write_model
from regraft.config import DataConfig, OptimConfig, TicketConfig
from regraft.data import graph_names
from regraft.errors import InputError
from regraft.jobs.base import Job
from regraft.jobs.data import load_once
from regraft.jobs.progress import Bar
from regraft.jobs.record import RecordJob
from regraft.jobs.train import facts
from regraft.jobs.verb import Done, run_carded
from regraft.machine import is_first_process
from regraft.tickets import Freezing
from regraft.train import RunFolder, finished_state, load_state
from regraft.train.loop import Progress

from .card import card_of

_IMAGES = OptimConfig(lr=0.1, weight_decay=1e-4, epochs=20)
_LEAST_STEPS = 200
"""Of images; the digits take 220 in 20 epochs."""
_GRAPH = OptimConfig(
    optimizer="adamw", lr=0.01, weight_decay=0.0, epochs=200, schedule="cosine", select="best"
)


def optim_for(data: DataConfig, *, batch_size: int, **said: Any) -> OptimConfig:
    """Return how to search on a kind of data: what is said, and for None what fits.

    Images take SGD at 0.1 for 20 epochs, or as many as 200 steps take. Of a graph an epoch is one step,
    so it takes 200 of AdamW at 0.01 and keeps the best on validation.

    Args:
        data: The data, which are loaded where the number of epochs depends on theirs.
        batch_size: Images in a batch.
        said: Fields of an `OptimConfig`, None where it is not said.

    Raises:
        InputError: The data cannot be loaded, or options of images with a graph.
    """
    graph = data.name in graph_names()
    images = {
        "--image-size": data.image_size,
        "--channels": data.channels,
        "--augment": data.augment,
    }
    wrong = next((f"{k} {v}" for k, v in images.items() if v not in (None, "none")), None)
    if graph and wrong:
        raise InputError(f"{wrong} is for images, and {data.name} is a graph: leave it out")
    values = {k: v for k, v in said.items() if v is not None}
    if not graph and "epochs" not in values:
        batches = max(1, math.ceil(len(load_once(data).train) / batch_size))
        values["epochs"] = max(_IMAGES.epochs, math.ceil(_LEAST_STEPS / batches))
    return replace(_GRAPH if graph else _IMAGES, batch_size=batch_size, **values)


def frozen_shares(ticket: TicketConfig, frozen: float | None) -> TicketConfig:
    """Return the search with the pruned and locked shares that --frozen stands for.

    Raises:
        InputError: Shares said twice or out of reach, or options of a freezing with a control that
            freezes nothing.
    """
    _refuse_ignored(ticket, frozen)
    if frozen is None:
        return ticket
    if ticket.pruned or ticket.locked:
        raise InputError(
            f"--frozen {frozen:g} chooses the pruned and the locked share: leave out --pruned and "
            "--locked, or give these two alone"
        )
    if ticket.allocation != "uniform" and ticket.scope == "layer":
        raise InputError(
            f"--frozen {frozen:g} with --allocation {ticket.allocation} freezes more of some layers "
            f"than of others, so that sparsity {ticket.sparsity:g} is out of reach in single layers: add "
            "--scope global, or give --pruned and --locked"
        )
    chosen = Freezing.balanced(ticket.sparsity, frozen, ticket.allocation)
    return replace(ticket, pruned=chosen.pruned, locked=chosen.locked)


def setting_of(data: DataConfig, model: str, width: float, ticket: TicketConfig) -> str:
    """Return what searches must share to be compared, so that a report can pair them."""
    pruned, locked = ticket.pruned, ticket.locked
    parts = [
        Path(data.name).name or data.name,
        model.replace("/", "-").replace(":", "-"),
        ticket.weight_init,
        f"sparsity={ticket.sparsity:g}",
        f"width={width:g}",
    ]
    if pruned or locked:
        # The total is a number of its own, which a report can draw along; the rest is a name.
        parts.append(f"frozen={pruned + locked:g}")
        balanced = None
        if min(pruned, locked) >= 0 and pruned + locked < 1:  # others are refused later
            balanced = Freezing.balanced(ticket.sparsity, pruned + locked)
        if balanced is None or (pruned, locked) != (balanced.pruned, balanced.locked):
            parts.append(f"pruned-{pruned:g}-locked-{locked:g}")
    if ticket.allocation != "uniform" and (
        pruned or locked or ticket.method == "random_mask_trained"
    ):
        parts.append(f"allocation-{ticket.allocation}")
    unusual = {
        "scope": (ticket.scope, "layer"),
        "graph_split": (data.graph_split, "public"),
        "features": (data.features, "raw"),
    }
    parts += [f"{name}-{value}" for name, (value, usual) in unusual.items() if value != usual]
    return "/".join([*parts, *(["dynamic_scale"] if ticket.dynamic_scale else [])])


@dataclass(frozen=True, kw_only=True)
class RecordedJob(RecordJob):
    """A training of the weights whose way is recorded, with the trained network beside it."""

    needs: ClassVar[tuple[str, ...]] = ()

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Train, record, and store the network; see `Job.work`."""
        result = super().work(folder, root, progress)
        if folder.writes:
            # Not the recording's last state, which is a sum of rounded changes.
            state = finished_state(load_state(folder.path / "checkpoint.safetensors"))
            about = facts(self.plain, load_once(self.data))
            write_model(folder.path / "model.safetensors", state, about)
        return result


def run_search(job: Job, out: Path, *, bar: bool) -> Done | None:
    """Search in a folder, go on, or read the card of what has finished.

    Args:
        job: The `TrainJob` or `RecordedJob`.
        out: The folder.
        bar: Show the progress.

    Returns:
        What it came to; None in other processes than the first, which write nothing.

    Raises:
        RegraftError: Whatever keeps it from its end; a folder that it made and has no use of is gone.
    """
    if not is_first_process():
        job.run_in(out)
        return None
    with Bar(enabled=bar) as shown:
        return run_carded(job, out, shown.update, card_of=partial(card_of, job, out))


def _refuse_ignored(ticket: TicketConfig, frozen: float | None) -> None:
    """Refuse options of a freezing with a control that freezes nothing."""
    options: dict[str, Any] = {
        "--frozen": frozen,
        "--pruned": ticket.pruned,
        "--locked": ticket.locked,
        "--dynamic-scale": ticket.dynamic_scale,
    }
    if ticket.method == "dense" and ticket.allocation != "uniform":
        options["--allocation"] = ticket.allocation
    wrong = [option for option, value in options.items() if value]
    if ticket.method in ("dense", "random_mask_trained") and wrong:
        raise InputError(
            f"{wrong[0]} has no effect on --method {ticket.method}, which has no search to freeze or to "
            "scale: leave it out, or take iterand, edge_popup or random_mask"
        )
