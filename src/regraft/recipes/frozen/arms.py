"""The arms of the recipe `frozen`: tickets of a network, and trained networks of their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.config import (
    Allocation,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    TicketConfig,
    TicketMethod,
)
from regraft.jobs.budget import bytes_at, density_of, entropy, numbers, widest
from regraft.jobs.train import TrainJob
from regraft.tickets import Freezing

_NOTHING = Freezing()


@dataclass(frozen=True)
class Settings:
    """How a network of another size than the task's is trained."""

    optim: OptimConfig
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the network that differ, its dropout for one."""


CONTROLS = ("tiny", "narrow", "coded", "binary", "ternary", "pruned", "sparse")
"""Kinds of trained networks of a ticket's bytes: float32, 4 bits, those coded, straight-through, masked."""


@dataclass(frozen=True)
class Task:
    """One network on one data set, with the settings chosen for it on validation."""

    setting: str
    data: DataConfig
    model: ModelConfig
    shape: Mapping[str, Any]
    """What `build` needs to know of the data."""
    search: OptimConfig
    train: OptimConfig
    ticket: TicketConfig
    runtime: RuntimeConfig
    overhead: int
    """Bytes of a ticket that are neither mask bits nor statistics, about."""
    controls: Mapping[str, Settings] = field(default_factory=dict)
    """Of each kind of `CONTROLS`, what was chosen for it; those of `train` for any other."""

    def job(self, arm: str, ticket: TicketConfig, control: str | None = None) -> TrainJob:
        """Return a search, or a control with the search's settings."""
        return TrainJob(
            setting=self.setting,
            arm=arm,
            control=control,
            data=self.data,
            model=self.model,
            ticket=ticket,
            optim=self.search,
            runtime=self.runtime,
        )

    def trained(self, arm: str, kind: str | None = None, *, control: str | None = None) -> TrainJob:
        """Return the training of the weights, of the network in its full width."""
        chosen = self.controls.get(kind or "", Settings(self.train))
        model = replace(self.model, options={**self.model.options, **chosen.options})
        job = self.job(arm, TicketConfig(method="dense"), control)
        return replace(job, model=model, optim=chosen.optim)

    def ticket_of(
        self, arm: str, sparsity: float, freezing: Freezing = _NOTHING, control: str | None = None
    ) -> TrainJob:
        """Return the search for a ticket of a sparsity in a partly frozen network."""
        ticket = replace(
            self.ticket,
            sparsity=round(sparsity, 4),
            pruned=freezing.pruned,
            locked=freezing.locked,
            allocation=freezing.allocation,
        )
        return self.job(arm, ticket, control)

    def same_bytes(self, bits: float, *, control: str, name: str = "") -> list[TrainJob]:
        """Return trained networks that take about the bytes of a ticket of `bits` a weight.

        Narrow in float32, narrow in 4 bits without and with entropy coding, binary (narrow), sparse
        under a random mask; of the full width ternary, and pruned by magnitude, rounded and coded.
        Only the 4-bit one where `name` tells it from that of another ticket.
        """
        weights, channels, others, statistics = numbers(self.model, self.shape)
        target = weights * bits / 8 + 4 * statistics + self.overhead
        # Of the full width nothing but the weights can shrink, and biases and norms are trained.
        few = max((target - 4 * (others + statistics)) * 8 / weights, 0.02)
        less = max(few - (2 * channels + _TABLES) * 8 / weights, 0.02)

        def within(arm: str, kind: str, size: float, scales: int = 2) -> list[TrainJob]:
            job = self.trained(arm, kind, control=control)
            model = widest(job.model, self.shape, target, bytes_at(size, scale_bytes=scales))
            return [] if model is None else [replace(job, model=model)]

        def rounded(source: TrainJob, arm: str, method: TicketMethod) -> TrainJob:
            ticket = TicketConfig(method=method, bits=4)
            return replace(source, arm=arm, ticket=ticket, source=source)

        narrow = within(f"dense_narrow{name}", "narrow", 4)
        narrow += [rounded(j, f"dense_4bit_same_bytes{name}", "quantised") for j in narrow]
        if name:
            return narrow
        coded = within("dense_narrow_coded", "coded", _CODED)
        coded += [rounded(j, "dense_4bit_coded_same_bytes", "quantised_coded") for j in coded]
        whole = self.trained("ternary_same_bytes", "ternary", control=control)
        ternary = TicketConfig(
            method="ternary", sparsity=round(1 - density_of(few, per_kept=1.0, most=0.66), 4)
        )
        pruned = replace(ternary, method="magnitude_pruned")
        pruned = replace(pruned, sparsity=round(1 - density_of(less, per_kept=_KEPT, most=0.9), 4))
        source = replace(self.trained("pruned_trained", "pruned", control=control), ticket=pruned)
        sparse = TicketConfig(
            method="random_mask_trained",
            sparsity=round(1 - bits / 32, 4),
            allocation="epl" if self.shape.get("graph") else "erk",
            rescale=True,
        )
        binary = TicketConfig(method="ternary", sparsity=0.0)
        return [
            *within("dense_same_bytes", "tiny", 32, 0),
            *narrow,
            *coded,
            *(replace(j, ticket=binary) for j in within("binary_same_bytes", "binary", 1, 0)),
            replace(whole, ticket=ternary),
            source,
            rounded(source, "pruned_4bit_coded_same_bytes", "quantised_coded"),
            replace(self.trained("sparse_same_bytes", "sparse", control=control), ticket=sparse),
        ]


_CODED, _KEPT = 3.3, 3.4
_TABLES = 240
"""Bits of a weight of four bits once it is coded, of one kept by its magnitude; bytes of frequencies."""


def pareto(
    task: Task, shares: tuple[float, ...], sparsity: float, allocation: Allocation = "erk"
) -> list[TrainJob]:
    """Return, at every frozen share, the frozen ticket and all that takes about its bytes.

    The frozen network has p and l in balance, the randomly pruned one p = F; of both, half of the
    free weights are kept. The whole network has the sparsity at which its coded mask is as long as
    1 - F bits a weight. At F = 0.5 the randomly pruned network is also searched just above its own
    sparsity, and there and at F = 0.9 a network is frozen with p and l nine to one.
    """
    jobs = []
    for share in shares:
        here = replace(task, setting=f"{task.setting}/frozen={share:g}")
        balanced = Freezing.balanced(sparsity, share, allocation)
        bits = 1.0 - share
        if share == 0:
            jobs += [here.trained("dense"), here.ticket_of("dense_source", sparsity)]
        else:
            pruned = Freezing(share, 0.0, allocation)
            jobs += [
                here.ticket_of("dense_source", 1 - density_of(bits)),
                here.ticket_of("pruned_source", share + bits / 2, pruned, "dense_source"),
                here.ticket_of("frozen", sparsity, balanced, "dense_source"),
            ]
            if share in (0.5, 0.9):
                few = Freezing(round(0.9 * share, 4), round(0.1 * share, 4), allocation)
                total = 0.9 * share + bits / 2
                jobs.append(here.ticket_of("frozen_few_locked", total, few, "dense_source"))
            if share == 0.5:
                near = here.ticket_of("pruned_source_near", share + bits / 20, pruned)
                jobs.append(replace(near, control="dense_source"))
        trained = here.same_bytes(bits, control="dense_source")
        jobs += [j for j in trained if j.arm != "sparse_same_bytes" or share in (0.0, 0.5, 0.9)]
    return jobs


def twins(task: Task) -> list[TrainJob]:
    """Return tickets of one network, its weight-trained twin, and what takes the tickets' bytes.

    `frozen_raw` is the paper's: a bit for each free weight. `frozen` and `frozen_coded` are sparser,
    so that coding pays; a whole and a pruned network are searched at the bytes of the latter.
    """
    some, half = Freezing(0.15, 0.05, "epl"), Freezing(0.45, 0.05, "epl")
    bits = {
        s: (1 - f.frozen) * entropy((1 - s - f.locked) / (1 - f.frozen))
        for s, f in ((0.8, some), (0.9, half))
    }
    pruned = Freezing(0.5, 0.0, "epl")
    return [
        task.trained("dense"),
        task.ticket_of("frozen_raw", 0.5, Freezing.balanced(0.5, 0.2, "epl"), "dense"),
        task.ticket_of("frozen", 0.8, some, "dense"),
        task.ticket_of("frozen_coded", 0.9, half, "dense"),
        task.ticket_of("dense_source", 1 - density_of(bits[0.9]), control="dense"),
        task.ticket_of("pruned_source", 1 - density_of(2 * bits[0.9]) / 2, pruned, "dense"),
        *task.same_bytes(bits[0.9], control="dense"),
        *task.same_bytes(bits[0.8], control="dense", name="_frozen"),
    ]
