"""IteRand against edge-popup at equal width, and how much narrower it may be; numbers in `scales.toml`.

References:
    Chijiwa et al., "Pruning randomly initialized neural networks with iterative randomization",
    NeurIPS 2021, section 5.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from regraft.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    TicketConfig,
    TicketMethod,
)
from regraft.jobs.train import TrainJob
from regraft.recipes.notes import read_rows
from regraft.recipes.recipe import Recipe, Scale, assemble

from .claims import SEARCHES, read

_INITS = {"constant": "signed_kaiming_constant", "uniform": "kaiming_uniform"}
_CONTROLS: tuple[TicketMethod, ...] = ("random_mask", "random_mask_trained", "shuffled_mask")


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    title = "IteRand against edge-popup"
    return assemble(__package__ or "", _groups(scale), scale, seeds, title=title, read=read)


def _groups(scale: str) -> list[Scale]:
    """Return the jobs of a scale as `scales.toml` lists them."""
    rows = read_rows(__package__ or "", "scales.toml", scale, _Row)
    return [Scale(row.jobs, row.seeds) for row in rows]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row of `scales.toml`, which says what its keys mean."""

    seeds: int
    data: DataConfig
    models: Sequence[str]
    laws: Sequence[str]
    widths: Sequence[float]
    ticket: TicketConfig
    optim: OptimConfig
    dense_lr: float
    dense_laws: Sequence[str] | None = None
    controls: Sequence[Sequence[Any]] = ()
    runtime: RuntimeConfig

    def jobs(self) -> list[TrainJob]:
        """Return every arm of every network, law and width."""
        jobs: list[TrainJob] = []
        for name, law, width in itertools.product(self.models, self.laws, self.widths):
            arms = _arms(
                f"{self.data.name}/{name.split('/')[-1]}/{law}/width={width:g}",
                data=self.data,
                model=ModelConfig(name=name, width=width),
                ticket=replace(self.ticket, weight_init=_INITS[law]),  # pyrefly: ignore
                search=self.optim,
                dense=replace(self.optim, lr=self.dense_lr),
                runtime=self.runtime,
                controls=_CONTROLS if [law, width] in self.controls else (),
            )
            kept = self.dense_laws is None or law in self.dense_laws
            jobs += arms if kept else [job for job in arms if job.arm != "dense"]
        return jobs


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
