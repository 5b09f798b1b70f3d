"""IteRand against edge-popup at equal width, and how much narrower it may be; scales in `notes.md`.

References:
    Chijiwa et al., "Pruning randomly initialized neural networks with iterative randomization",
    NeurIPS 2021, section 5.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from regraft.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    TicketConfig,
    TicketMethod,
)
from regraft.jobs.train import TrainJob
from regraft.recipes.notes import read_data
from regraft.recipes.recipe import Recipe, Scale, assemble

from .claims import SEARCHES, read

_INITS = {"constant": "signed_kaiming_constant", "uniform": "kaiming_uniform"}
_CONTROLS: tuple[TicketMethod, ...] = ("random_mask", "random_mask_trained", "shuffled_mask")


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    seeds_of = {"smoke": 3, "cpu": 5, "gpu": 3, "paper": 3}
    scales = {name: Scale(partial(_jobs, name), count) for name, count in seeds_of.items()}
    title = "IteRand against edge-popup"
    return assemble(__package__ or "", scales, scale, seeds, title=title, read=read)


def _arms(
    setting: str,
    *,
    data: DataConfig,
    model: ModelConfig,
    ticket: TicketConfig,
    search: OptimConfig,
    dense: OptimConfig,
    runtime: RuntimeConfig,
    controls: Iterable[TicketMethod] = (),
    searches: Iterable[TicketMethod] = SEARCHES,
) -> list[TrainJob]:
    """Return every arm of one setting: dense, the searches, and some mask controls."""

    def job(method: TicketMethod, optim: OptimConfig, **more: object) -> TrainJob:
        return TrainJob(
            setting=setting,
            arm=method,
            data=data,
            model=model,
            ticket=replace(ticket, method=method),
            optim=optim,
            runtime=runtime,
            **more,  # pyrefly: ignore
        )

    jobs = [job("dense", dense)]
    for method in searches:
        jobs.append(job(method, search, control="edge_popup" if method == "iterand" else None))
    iterand = jobs[-1]
    for method in controls:
        more = {"source": iterand} if method == "shuffled_mask" else {}
        optim = dense if method == "random_mask_trained" else search
        jobs.append(job(method, optim, control="edge_popup", **more))
    return jobs


def _jobs(scale: str) -> list[TrainJob]:
    """Return the jobs of a scale as `scales.toml` lists them."""
    jobs: list[TrainJob] = []
    for row in read_data(__package__ or "", "scales.toml")[scale]:
        search = OptimConfig(**row["optim"])
        for name, law, width in itertools.product(row["models"], row["laws"], row["widths"]):
            arms = _arms(
                f"{row['data']['name']}/{name.split('/')[-1]}/{law}/width={width:g}",
                data=DataConfig(**row["data"]),
                model=ModelConfig(name=name, width=width),
                ticket=TicketConfig(weight_init=_INITS[law], **row["ticket"]),  # pyrefly: ignore
                search=search,
                dense=replace(search, lr=row["dense_lr"]),
                runtime=RuntimeConfig(**row["runtime"]),
                controls=_CONTROLS if [law, width] in row.get("controls", ()) else (),
            )
            kept = law in row.get("dense_laws", row["laws"])
            jobs += arms if kept else [job for job in arms if job.arm != "dense"]
    return jobs
