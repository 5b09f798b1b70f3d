"""Partly frozen tickets against everything else that fits into the same bytes; numbers in `scales.toml`.

References:
    Otsuka et al., "Partially frozen random networks contain compact strong lottery tickets",
    TMLR 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.config import (
    Allocation,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    TicketConfig,
)
from regraft.jobs.train import TrainJob
from regraft.recipes.notes import read_data, read_rows
from regraft.recipes.recipe import Recipe, Scale, assemble

from .arms import Settings, Task, pareto, twins
from .claims import read

_FILE = "scales.toml"


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    package = __package__ or ""
    if scale == "cpu":
        groups = [Scale(lambda c=c: twins(cora_task(c)), c.seeds) for c in CORA_CHOSEN]
    else:
        rows = read_rows(package, _FILE, scale, FrozenSetting)
        groups = [Scale(row.jobs, row.seeds) for row in rows]
    title = "Partly frozen tickets against their bytes"
    return assemble(package, groups, scale, seeds, title=title, read=read)


@dataclass(frozen=True, kw_only=True)
class FrozenSetting:
    """One network on one data set; a row of `scales.toml`.

    Attributes:
        seeds: How many seeds each arm has.
        shares: Frozen shares that the bytes are swept over; without them the arms are those of `twins`.
        allocation: How a share is spread over the layers.
        rates: Trained networks of a ticket's bytes have the learning rates of `chosen.toml`.
        task: The network, the data, and how either is searched and trained.
    """

    seeds: int
    shares: tuple[float, ...] = ()
    allocation: Allocation = "erk"
    rates: bool = False
    task: Task

    def jobs(self) -> list[TrainJob]:
        """Return every arm."""
        task = self.tuned()
        return pareto(task, self.shares, 0.5, self.allocation) if self.shares else twins(task)

    def tuned(self) -> Task:
        """Return the task with the learning rates that were chosen."""
        train = self.task.train
        chosen = read_data(__package__ or "", "chosen.toml")["images"] if self.rates else {}
        controls = {kind: Settings(replace(train, lr=lr)) for kind, lr in chosen.items()}
        return replace(self.task, controls=controls)


_SEARCHED = TicketConfig(
    method="edge_popup",
    scope="global",
    score="magnitude",
    score_init="kaiming_normal",
    weight_init="signed_kaiming_constant",
)
_ADAMW = OptimConfig(
    optimizer="adamw", lr=0.01, weight_decay=0.0, schedule="cosine", epochs=100, select="best"
)
_CORA = {"num_classes": 7, "graph": True, "features": 1433}


@dataclass(frozen=True)
class _Chosen:
    """What `benchmarks/choose_frozen.py` chose for one network on Cora: learning rates and dropout."""

    split: str
    name: str
    seeds: int
    search: float
    train: float
    controls: Mapping[str, Sequence[float]]
    options: Mapping[str, Any] = field(default_factory=dict)
    narrow_options: Mapping[str, Any] = field(default_factory=dict)


CORA_CHOSEN = tuple(read_rows(__package__ or "", "chosen.toml", "chosen", _Chosen))


def cora_task(chosen: _Chosen) -> Task:
    """Return one network on Cora."""

    def other(kind: str, pair: Sequence[float]) -> Settings:
        lr, dropout = pair
        shrunk = kind in ("tiny", "narrow", "coded", "binary")
        options = chosen.narrow_options if shrunk else {}
        optim = replace(_ADAMW, lr=lr, epochs=200 if shrunk else 100)
        return Settings(optim, {**options, "dropout": dropout})

    return Task(
        setting=f"cora/{chosen.split}/{chosen.name}",
        data=DataConfig(name="cora", graph_split=chosen.split, features="l2"),  # pyrefly: ignore
        model=ModelConfig(name=chosen.name, options={"dropout": 0.5, **chosen.options}),
        shape=_CORA,
        search=replace(_ADAMW, lr=chosen.search),
        train=replace(_ADAMW, lr=chosen.train),
        ticket=replace(_SEARCHED, dynamic_scale=True),
        runtime=RuntimeConfig(accelerator="cpu", threads=1, checkpoint_seconds=300.0),
        overhead=300,
        controls={kind: other(kind, pair) for kind, pair in chosen.controls.items()},
    )


def image_task() -> Task:
    """Return the convolutions on Fashion-MNIST."""
    (row,) = read_rows(__package__ or "", _FILE, "images", FrozenSetting)
    return row.tuned()
