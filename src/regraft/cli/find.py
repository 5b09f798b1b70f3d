"""`regraft ticket find`: search for a ticket on any data and any model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from regraft.config import (
    Allocation,
    Augmentation,
    DataConfig,
    Schedule,
    TicketConfig,
    TicketMethod,
)
from regraft.config.check import AT_LEAST_1
from regraft.errors import InputError

from .options import (
    ImageOptions,
    LongRuntimeOptions,
    ModelOptions,
    Network,
    Options,
    ResultOptions,
    SplitOptions,
    default_out,
    pick,
)
from .output import tell

if TYPE_CHECKING:
    from regraft.jobs.base import Job


@dataclass(frozen=True, kw_only=True)
class _Ticket(Options):
    """More about the search."""

    scope: Literal["layer", "global"] = "layer"
    """One threshold for each layer or one for all."""
    score: Literal["signed", "magnitude"] = "signed"
    """Rank by score or by its absolute value."""
    weight_init: Literal["signed_kaiming_constant", "kaiming_uniform", "kaiming_normal"] = (
        "signed_kaiming_constant"
    )
    """Law of the frozen random weights."""
    pruned: float = 0.0
    """Share of the weights pruned for good before the search."""
    locked: float = 0.0
    """Share of the weights locked into the subnetwork; the sparsity is at most 1 - locked."""
    allocation: Allocation = "uniform"
    """How the frozen shares spread over the layers."""
    dynamic_scale: bool = False
    """Multiply each layer by 1/sqrt(its kept share)."""
    every: int = 100
    """IteRand: iterations between two re-randomisations."""
    rate: float = 0.1
    """IteRand: probability that a pruned weight is redrawn."""
    anneal: float = 0.0
    """Share of training over which the sparsity grows from 0."""
    penalty: float = 0.0
    """Weight of the sum of squared scores in the loss."""
    trainable: tuple[str, ...] = ()
    """Patterns of parameter names to train normally instead, e.g. "fc.*"."""


@dataclass(frozen=True, kw_only=True)
class _Training(Options):
    """More about the training; what is left out fits the data, images or a graph."""

    batch_size: Annotated[int, AT_LEAST_1] = 128
    """Images in a global batch; a graph is one batch."""
    optimizer: Literal["sgd", "adamw"] | None = None
    """SGD with momentum 0.9, the default for images, or AdamW, that for graphs."""
    weight_decay: float | None = None
    """Weight decay; 1e-4 for images, 0 for graphs."""
    schedule: Schedule | None = None
    """How the learning rate falls; epoch-cosine for images, cosine for graphs."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up."""
    select: Literal["last", "best"] | None = None
    """Keep the last state, the default for images, or the one of the highest validation accuracy."""
    clip_norm: float | None = None
    """Clip the gradients' norm."""
    accumulate: int = 1
    """Chunks into which a batch is cut."""
    augment: Augmentation = "none"
    """Augmentation of the training images."""


@dataclass(frozen=True, kw_only=True)
class _Data(SplitOptions):
    """Which images or nodes are for what, and where known sets lie."""

    graph_split: Literal["public", "full", "random"] = "public"
    """Of a graph: the published split, all other nodes for training, or a random one."""
    features: Literal["raw", "row", "l2"] = "raw"
    """Of a graph: features as published, rows that sum to one, or rows of one length."""


@dataclass(frozen=True, kw_only=True)
class _Runtime(LongRuntimeOptions):
    """The seed, where and how exactly to compute, and how often to save."""

    compile: bool = False
    """Compile the network."""


@dataclass(frozen=True, kw_only=True)
class Find(Options):
    """Search a random network for a subnetwork that solves a task; only scores are trained.

    Leaves a run folder with `model.ticket` (masks and a seed), metrics and a card; the same
    command goes on after an interruption. The controls are methods too.
    """

    data: str = "digits"
    """A known data set (`regraft data list`) or a folder of images, one subfolder a class."""
    model: str = "conv_small"
    """A built-in network, timm/NAME, torchvision/NAME or package.module:factory."""
    out: Path | None = None
    """Run folder to make or go on with; runs/find-DATA-MODEL-METHOD without it."""
    method: TicketMethod = "iterand"
    """iterand and edge_popup are searches, the others controls; three of these need the run of a recipe."""
    sparsity: float = 0.5
    """Fraction of the weights removed."""
    frozen: float | None = None
    """Freeze this share of the weights, pruned and locked so that half of the rest is kept."""
    epochs: int | None = None
    """Passes over the training images, without it 20 or as many as 200 steps take; of a graph 200."""
    lr: float | None = None
    """Learning rate; without it 0.1, of a graph 0.01."""
    record: bool = False
    """dense: record the way of the weights, for `regraft transfer`."""
    states: Annotated[int, AT_LEAST_1] = 10
    """--record: states to record after the initial one, evenly spread."""
    search: Annotated[_Ticket, tyro.conf.arg(name="search")] = field(default_factory=_Ticket)
    training: _Training = field(default_factory=_Training)
    sets: Annotated[_Data, tyro.conf.arg(name="data")] = field(default_factory=_Data)
    images: ImageOptions = field(default_factory=ImageOptions)
    network: Network = field(default_factory=ModelOptions)
    runtime: _Runtime = field(default_factory=_Runtime)
    output: ResultOptions = field(default_factory=ResultOptions)

    def run(self) -> int:
        """Search, show progress, write the card, and tell."""
        from regraft.jobs.ticket.search import run_search

        out = self.folder()
        done = run_search(self.job(), out, bar=not self.output.json)
        if done is not None:
            tell(done, out, "search", as_json=self.output.json)
        return 0

    def folder(self) -> Path:
        """Return the run folder."""
        return self.out or default_out("find", self.data, self.model, self.method)

    def job(self) -> Job:
        """Return what is to be run.

        Raises:
            InputError: Options out of their range, or that have no effect together.
        """
        from regraft.jobs.ticket.search import RecordedJob, frozen_shares, optim_for, setting_of
        from regraft.jobs.train import TrainJob

        self._refuse()
        self.check()
        values = self.values()
        data = self._data()
        model = self.network.config(self.model)
        ticket = frozen_shares(pick(TicketConfig, values), self.frozen)
        runtime = self.runtime.config()
        optim = optim_for(
            data,
            epochs=self.epochs,
            lr=self.lr,
            **{k: v for k, v in self.training.values().items() if k != "augment"},
        )
        setting = setting_of(data, self.model, model.width, ticket)
        if self.record:
            return RecordedJob(
                setting=setting, arm=self.method, data=data, model=model, optim=optim,
                runtime=runtime, states=self.states,
            )  # fmt: skip
        return TrainJob(
            setting=setting,
            arm=self.method,
            control="edge_popup" if self.method == "iterand" else None,
            data=data,
            model=model,
            ticket=ticket,
            optim=optim,
            runtime=runtime,
        )

    def _data(self) -> DataConfig:
        images = self.images
        return self.sets.config(
            self.data,
            augment=self.training.augment,
            image_size=images.image_size,
            channels=images.channels,
        )

    def _refuse(self) -> None:
        if self.method in ("shuffled_mask", "quantised", "quantised_coded"):
            raise InputError(
                f"--method {self.method} takes a finished run for its source: `regraft reproduce "
                "iterand` and `regraft reproduce frozen` run it"
            )
        if self.record and self.method != "dense":
            raise InputError(
                "--record is of trained weights, which a search does not change: add --method dense"
            )
