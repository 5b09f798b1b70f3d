"""The arms of the recipe `frozen`: tickets of a network, and trained networks of their bytes."""

from __future__ import annotations

import math
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
)
from regraft.jobs.train import TrainJob
from regraft.models import build
from regraft.tickets import Freezing

_NOTHING = Freezing()


@dataclass(frozen=True)
class Settings:
    """How a network of another size than the task's is trained."""

    optim: OptimConfig
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the network that differ, its dropout for one."""


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
    tiny: Settings
    """For float32 networks of a ticket's bytes."""
    narrow: Settings
    """For networks that have a ticket's bytes once they are rounded to 4 bits."""
    sparse: Settings
    """For networks of which a random mask leaves a ticket's bytes."""

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

    def trained(
        self, arm: str, settings: Settings | None = None, *, width: float = 1.0, control: str = ""
    ) -> TrainJob:
        """Return the training of the weights, of the network or of a narrower one."""
        job = self.job(arm, TicketConfig(method="dense"), control or None)
        chosen = settings or Settings(self.train)
        options = {**self.model.options, **chosen.options}
        model = replace(self.model, width=self.model.width * width, options=options)
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

    def same_bytes(self, bits_per_weight: float, *, control: str, name: str = "") -> list[TrainJob]:
        """Return trained networks that take about a ticket's bytes: narrow, 4-bit, sparse.

        Only the 4-bit one where `name` tells it from that of another ticket.
        """
        weights, _, _, statistics = self._numbers(self.model)
        target = weights * bits_per_weight / 8 + 4 * statistics + self.overhead
        jobs = []
        dense = self._within("dense_same_bytes", self.tiny, target, 32, control)
        if dense is not None and not name:
            jobs.append(dense)
        narrow = self._within(f"dense_narrow{name}", self.narrow, target, 4, control)
        if narrow is not None:
            ticket = TicketConfig(method="quantised", bits=4)
            arm = f"dense_4bit_same_bytes{name}"
            jobs += [narrow, replace(narrow, arm=arm, ticket=ticket, source=narrow)]
        if not name:
            sparse = TicketConfig(
                method="random_mask_trained",
                sparsity=round(1 - bits_per_weight / 32, 4),
                allocation="epl" if self.shape.get("graph") else "erk",
                rescale=True,
            )
            trained = self.trained("sparse_same_bytes", self.sparse, control=control)
            jobs.append(replace(trained, ticket=sparse))
        return jobs

    def _within(
        self, arm: str, settings: Settings, target: float, bits: int, control: str
    ) -> TrainJob | None:
        """Return the training of the widest network that takes `target` bytes at most, or None."""
        if "/" in self.model.name:  # torchvision's and timm's networks have no width factor
            return None
        best, low, high = None, 0.0, 1.0
        for _ in range(10):
            # Few digits, so that the width that is tried is the width that is named.
            width = round((low + high) / 2, 4)
            job = self.trained(arm, settings, width=width, control=control)
            weights, scales, others, statistics = self._numbers(job.model)
            size = weights * bits / 8 + 4 * (others + statistics) + (2 * scales if bits < 32 else 0)
            if size <= target:
                best, low = job, width
            else:
                high = width
        return best

    def _numbers(self, model: ModelConfig) -> tuple[int, int, int, int]:
        """Return how many weights, output channels, other parameters and statistics there are."""
        network = build(model, **self.shape)
        matrices = [p for p in network.parameters() if p.dim() > 1]
        return (
            sum(p.numel() for p in matrices),
            sum(p.shape[0] for p in matrices),
            sum(p.numel() for p in network.parameters() if p.dim() < 2),
            sum(b.numel() for b in network.buffers() if b.is_floating_point()),
        )


def density_of(bits: float) -> float:
    """Return the density d <= 1/2 whose mask has an entropy of `bits` in [0, 1] a weight."""
    low, high = 0.0, 0.5
    for _ in range(60):
        d = (low + high) / 2
        low, high = (d, high) if entropy(d) < bits else (low, d)
    return high


def entropy(d: float) -> float:
    """Return the bits a weight of a mask that keeps a share d: -d log2 d - (1 - d) log2(1 - d)."""
    return sum(-x * math.log2(x) for x in (d, 1 - d) if x > 0)


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
