"""Partly frozen tickets against everything else that fits into the same bytes.

`cpu`: (a) Cora, three graph networks, ten seeds: tickets against the weight-trained twin, with the
bytes of both as files on disk, and against trained networks that are as small; (b) Fashion-MNIST,
three strided convolutions at double width, frozen shares 0 to 0.9, four seeds: accuracy against
file size. `gpu`: ResNet-18 on CIFAR-10-JPEG (not measured yet). `paper`: the published sets (card
B3): Conv6 and ResNet-18 on CIFAR-10, ResNet-50 on ImageNet, GIN on ogbn-arxiv; bring GPUs.
`smoke`: digits, half a minute.

References:
    Otsuka et al., "Partially frozen random networks contain compact strong lottery tickets",
    TMLR 2025.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from regraft.config import (
    Allocation,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    TicketConfig,
)
from regraft.models import build
from regraft.tickets import Freezing

from .frozen_reading import read
from .job import Job
from .recipe import Recipe

_NOTHING = Freezing()
_OVERHEAD = 700  # bytes of a small ticket that are neither mask bits nor statistics


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    jobs = {"smoke": _smoke, "cpu": _cpu, "gpu": _gpu, "paper": _paper}[scale](seeds)
    return Recipe(
        name="frozen",
        scale=scale,
        title=f"Partly frozen tickets against their bytes ({scale})",
        asked=(
            "Freezing a random share of a random network (pruned for good, or locked) leaves fewer "
            "mask bits to store. How good is such a ticket against the same network with trained "
            "weights, against tickets of the whole or of a randomly pruned network, and against "
            "trained networks that take as many bytes?"
        ),
        jobs=jobs,
        read=read,
    )


@dataclass(frozen=True)
class _Task:
    """One network on one data set, with the settings chosen for it on validation."""

    setting: str
    data: DataConfig
    model: ModelConfig
    shape: Mapping[str, Any]
    """What `build` needs to know of the data."""
    search: OptimConfig
    train: OptimConfig
    sparse: OptimConfig
    """For the training under a random mask."""
    ticket: TicketConfig
    runtime: RuntimeConfig

    def job(self, arm: str, ticket: TicketConfig, control: str | None = None) -> Job:
        """Return a search, or a control with the search's settings."""
        return Job(
            setting=self.setting,
            arm=arm,
            control=control,
            data=self.data,
            model=self.model,
            ticket=ticket,
            optim=self.search,
            runtime=self.runtime,
        )

    def trained(self, arm: str, *, width: float = 1.0, control: str | None = None) -> Job:
        """Return the training of the weights, of the network or a narrower one."""
        job = self.job(arm, TicketConfig(method="dense"), control)
        model = replace(self.model, width=round(self.model.width * width, 4))
        return replace(job, model=model, optim=self.train)

    def ticket_of(
        self, arm: str, sparsity: float, freezing: Freezing = _NOTHING, control: str | None = None
    ) -> Job:
        """Return the search for a ticket of a sparsity in a partly frozen network."""
        ticket = replace(
            self.ticket,
            sparsity=round(sparsity, 4),
            pruned=freezing.pruned,
            locked=freezing.locked,
            allocation=freezing.allocation,
        )
        return self.job(arm, ticket, control)

    def same_bytes(self, bits_per_weight: float, *, control: str) -> list[Job]:
        """Return trained networks that take no more bytes than a ticket: narrow, 4-bit, sparse."""
        weights, others = self._numbers(1.0)
        target = weights * bits_per_weight / 8 + 4 * others + _OVERHEAD
        jobs = []
        fixed = "/" in self.model.name  # torchvision's and timm's networks have no width factor
        for bits, narrow in ((32, "dense_same_bytes"), (4, "dense_narrow")):
            width = None if fixed else self._width_within(target, bits)
            if width is None:
                continue
            dense = self.trained(narrow, width=width, control=control)
            jobs.append(dense)
            if bits < 32:
                ticket = TicketConfig(method="quantised", bits=bits)
                arm = f"dense_{bits}bit_same_bytes"
                jobs.append(replace(dense, arm=arm, ticket=ticket, source=dense))
        sparse = TicketConfig(
            method="random_mask_trained",
            sparsity=round(1 - bits_per_weight / 32, 4),
            allocation="epl" if self.shape.get("graph") else "erk",
            rescale=True,
        )
        jobs.append(replace(self.job("sparse_same_bytes", sparse, control), optim=self.sparse))
        return jobs

    def _numbers(self, width: float) -> tuple[int, int]:
        """Return how many weights and how many other numbers the network holds."""
        model = replace(self.model, width=self.model.width * width)
        network = build(model, **self.shape)
        weights = sum(p.numel() for p in network.parameters() if p.dim() > 1)
        others = sum(p.numel() for p in network.parameters() if p.dim() < 2)
        return weights, others + sum(b.numel() for b in network.buffers() if b.is_floating_point())

    def _width_within(self, target: float, bits: int) -> float | None:
        """Return the largest width factor whose network takes at most `target` bytes, or None."""
        best, low, high = None, 0.0, 1.0
        for _ in range(10):
            width = (low + high) / 2
            weights, others = self._numbers(width)
            if weights * bits / 8 + 4 * others <= target:
                best = low = width
            else:
                high = width
        # Rounded down: rounding up may add a channel.
        return None if best is None else math.floor(best * 1e4) / 1e4


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


def _pareto(
    task: _Task, shares: tuple[float, ...], sparsity: float, allocation: Allocation = "erk"
) -> list[Job]:
    """Return, at every frozen share, the frozen ticket and all that takes about its bytes.

    The frozen network has p and l in balance, the randomly pruned one p = F and half of the rest
    kept, the whole network the sparsity at which its coded mask is as long as 1 - F bits a weight.
    At two shares the randomly pruned network is also searched just above its own sparsity.
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
            if share in (0.5, 0.8):
                near = here.ticket_of("pruned_source_near", share + bits / 20, pruned)
                jobs.append(replace(near, control="dense_source"))
        jobs += here.same_bytes(bits, control="dense_source")
    return jobs


def _twins(task: _Task) -> list[Job]:
    """Return tickets of one network, its weight-trained twin, and what takes the tickets' bytes."""
    locked = Freezing(0.45, 0.05, "epl")
    free = 1 - locked.frozen
    density = (1 - 0.9 - locked.locked) / free
    bits = free * entropy(density)
    return [
        task.trained("dense"),
        task.ticket_of("frozen", 0.5, Freezing.balanced(0.5, 0.2, "epl"), "dense"),
        task.ticket_of("frozen_coded", 0.9, locked, "dense"),
        task.ticket_of("dense_source", 1 - density_of(bits), control="dense"),
        task.ticket_of("pruned_source", 0.9, Freezing(0.5, 0.0, "epl"), "dense"),
        *task.same_bytes(bits, control="dense"),
    ]


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


_DROP = {"dropout": 0.5}
# Best mean validation accuracy with seeds 11 and 12 (GAT: 11): for training, of learning rates 0.003,
# 0.01 and 0.03, dropout 0 and 0.5, weight decay 0 and 0.05; for the search (the mean over frozen,
# frozen_coded and a whole network at s = 0.95), of the same learning rates and dropouts; for sparse
# training, of 0.003 to 0.1. Split, network, search, training, options of the network.
_CORA_CHOSEN: tuple[tuple[str, str, dict[str, float], dict[str, float], dict[str, Any]], ...] = (
    ("full", "gcn", {"lr": 0.01}, {"lr": 0.003}, _DROP),
    ("full", "gin", {"lr": 0.01}, {"lr": 0.003}, _DROP),
    ("full", "gat", {"lr": 0.01}, {"lr": 0.03}, {**_DROP, "hidden": 32}),
    ("public", "gcn", {"lr": 0.01}, {"lr": 0.01}, _DROP),
)


def _smoke(seeds: int | None) -> list[Job]:
    optim = OptimConfig(lr=0.4, epochs=60, batch_size=64)
    task = _Task(
        setting="digits/conv_small",
        data=DataConfig(name="digits", validation=0.1),
        model=ModelConfig(name="conv_small"),
        shape={"num_classes": 10, "channels": 1, "image_size": 8},
        search=optim,
        train=replace(optim, lr=0.1),
        sparse=replace(optim, lr=0.1),
        ticket=_SEARCHED,
        runtime=RuntimeConfig(accelerator="cpu", threads=1, eval_every=10),
    )
    return _seeded(_pareto(task, (0.0, 0.5), 0.5), seeds or 3)


def _cpu(seeds: int | None) -> list[Job]:
    graphs: list[Job] = []
    for split, name, search, train, options in _CORA_CHOSEN:
        task = _Task(
            setting=f"cora/{split}/{name}",
            data=DataConfig(name="cora", graph_split=split, features="l2"),  # pyrefly: ignore
            model=ModelConfig(name=name, options=options),
            shape=_CORA,
            search=replace(_ADAMW, **search),  # pyrefly: ignore
            train=replace(_ADAMW, **train),  # pyrefly: ignore
            sparse=replace(_ADAMW, lr=0.03),
            ticket=replace(_SEARCHED, dynamic_scale=True),
            runtime=RuntimeConfig(accelerator="cpu", threads=1, checkpoint_seconds=300.0),
        )
        graphs += _twins(task)
    # Best validation accuracy with seed 11: for the search at F = 0, of learning rates 0.1, 0.4 and
    # 1.6, with uniform and with constant weights; for training (half of the width, before and after
    # rounding), of 0.1, 0.2 and 0.4; for sparse training at F = 0.5, of 0.02 to 0.4.
    optim = OptimConfig(lr=0.4, epochs=5, batch_size=128)
    images = _Task(
        setting="fashion_mnist/conv_small",
        data=DataConfig(name="fashion_mnist", validation=0.1),
        model=ModelConfig(name="conv_small"),
        shape={"num_classes": 10, "channels": 1, "image_size": 28},
        search=optim,
        train=replace(optim, lr=0.2),
        sparse=replace(optim, lr=0.05),
        ticket=_SEARCHED,
        runtime=RuntimeConfig(accelerator="cpu", threads=1),
    )
    sweep = _pareto(images, (0.0, 0.3, 0.5, 0.7, 0.8, 0.9), 0.5)
    return _seeded(graphs, seeds or 10) + _seeded(sweep, min(seeds or 3, 3))


def _gpu(seeds: int | None) -> list[Job]:
    optim = OptimConfig(lr=0.1, weight_decay=1e-4, epochs=12, batch_size=128)
    task = _Task(
        setting="cifar10_jpeg/resnet18",
        data=DataConfig(name="cifar10_jpeg", augment="crop-flip"),
        model=ModelConfig(name="resnet18", width=0.5),
        shape={"num_classes": 10, "channels": 3, "image_size": 32},
        search=optim,
        train=optim,
        sparse=optim,
        ticket=_SEARCHED,
        runtime=RuntimeConfig(accelerator="cuda", precision="bf16-mixed", threads=4, eval_every=4),
    )
    return _seeded(_pareto(task, (0.0, 0.5, 0.8), 0.5), seeds or 3)


def _paper(seeds: int | None) -> list[Job]:
    """Return the published settings (card B3)."""
    jobs: list[Job] = []
    shares = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9)
    cifar = OptimConfig(lr=0.1, weight_decay=1e-4, epochs=100, batch_size=128, schedule="cosine")
    for name in ("conv6", "resnet18"):
        task = _Task(
            setting=f"cifar10/{name}",
            data=DataConfig(name="cifar10", augment="crop-flip", validation=0.2),
            model=ModelConfig(name=name, options={"bias": False} if name == "conv6" else {}),
            shape={"num_classes": 10, "channels": 3, "image_size": 32},
            search=cifar,
            train=cifar,
            sparse=cifar,
            ticket=replace(_SEARCHED, weight_init="kaiming_uniform"),
            runtime=RuntimeConfig(eval_every=5),
        )
        jobs += _pareto(task, shares, 0.5)
    arxiv = replace(_ADAMW, epochs=400)
    jobs += _twins(
        _Task(
            setting="ogbn-arxiv/public/gin",
            data=DataConfig(name="ogbn-arxiv", graph_split="public"),
            model=ModelConfig(name="gin", options={"layers": 4, "hidden": 386}),
            shape={"num_classes": 40, "graph": True, "features": 128},
            search=arxiv,
            train=arxiv,
            sparse=arxiv,
            ticket=replace(_SEARCHED, weight_init="kaiming_uniform"),
            runtime=RuntimeConfig(),
        )
    )
    imagenet = replace(cifar, batch_size=256)
    task = _Task(
        setting="imagenet/resnet50",
        data=DataConfig(name="imagenet", validation=0.2, augment="resized-crop-flip"),
        model=ModelConfig(name="torchvision/resnet50"),
        shape={"num_classes": 1000, "channels": 3, "image_size": 224},
        search=imagenet,
        train=imagenet,
        sparse=imagenet,
        ticket=replace(_SEARCHED, dynamic_scale=True),
        runtime=RuntimeConfig(eval_every=5),
    )
    jobs += _pareto(task, (0.0, 0.5, 0.7), 0.5, "epl")
    return _seeded(jobs, seeds or 3)


def _seeded(jobs: list[Job], seeds: int) -> list[Job]:
    return [job.with_seed(seed) for job in jobs for seed in range(1, seeds + 1)]
