"""Partly frozen tickets against everything else that fits into the same bytes; scales in `notes.md`.

References:
    Otsuka et al., "Partially frozen random networks contain compact strong lottery tickets",
    TMLR 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig, TicketConfig
from regraft.jobs.train import TrainJob
from regraft.recipes.notes import read_data, read_rows
from regraft.recipes.recipe import Recipe, Scale, assemble

from .arms import Settings, Task, pareto, twins
from .claims import read


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    scales = {
        "smoke": Scale(_smoke, 3),
        "cpu": Scale(_cpu, 10),
        "images": Scale(_images, 3),
        "gpu": Scale(_gpu, 3),
        "paper": Scale(_paper, 3),
    }
    title = "Partly frozen tickets against their bytes"
    return assemble(__package__ or "", scales, scale, seeds, title=title, read=read)


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
    search: float
    train: float
    controls: Mapping[str, Sequence[float]]
    options: Mapping[str, Any] = field(default_factory=dict)
    narrow_options: Mapping[str, Any] = field(default_factory=dict)


_IMAGES = read_data(__package__ or "", "chosen.toml")["images"]
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


def _smoke() -> list[TrainJob]:
    optim = OptimConfig(lr=0.4, epochs=60, batch_size=64)
    task = Task(
        setting="digits/conv_small",
        data=DataConfig(name="digits", validation=0.1),
        model=ModelConfig(name="conv_small"),
        shape={"num_classes": 10, "channels": 1, "image_size": 8},
        search=optim,
        train=replace(optim, lr=0.1),
        ticket=_SEARCHED,
        runtime=RuntimeConfig(accelerator="cpu", threads=1, eval_every=10),
        overhead=700,
    )
    return pareto(task, (0.0, 0.5), 0.5)


def image_task() -> Task:
    """Return the convolutions on Fashion-MNIST."""
    optim = OptimConfig(lr=0.4, epochs=5, batch_size=128)
    return Task(
        setting="fashion_mnist/conv_small",
        data=DataConfig(name="fashion_mnist", validation=0.1),
        model=ModelConfig(name="conv_small"),
        shape={"num_classes": 10, "channels": 1, "image_size": 28},
        search=optim,
        train=replace(optim, lr=0.2),
        ticket=_SEARCHED,
        runtime=RuntimeConfig(accelerator="cpu", threads=1),
        overhead=700,
        controls={k: Settings(replace(optim, lr=lr)) for k, lr in _IMAGES.items()},
    )


def _cpu() -> list[TrainJob]:
    return [job for chosen in CORA_CHOSEN for job in twins(cora_task(chosen))]


def _images() -> list[TrainJob]:
    return pareto(image_task(), (0.0, 0.3, 0.5, 0.7, 0.9), 0.5)


def _gpu() -> list[TrainJob]:
    optim = OptimConfig(lr=0.1, weight_decay=1e-4, epochs=30, batch_size=128)
    task = Task(
        setting="cifar10_jpeg/resnet18",
        data=DataConfig(name="cifar10_jpeg", augment="crop-flip"),
        model=ModelConfig(name="resnet18"),
        shape={"num_classes": 10, "channels": 3, "image_size": 32},
        search=optim,
        train=optim,
        overhead=2000,
        ticket=_SEARCHED,
        runtime=RuntimeConfig(accelerator="cuda", precision="bf16-mixed", threads=4, eval_every=4),
    )
    return pareto(task, (0.0, 0.5, 0.8), 0.5)


def _paper() -> list[TrainJob]:
    """Return the published settings (card B3)."""
    jobs: list[TrainJob] = []
    shares = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9)
    cifar = OptimConfig(lr=0.1, weight_decay=1e-4, epochs=100, batch_size=128, schedule="cosine")
    for name in ("conv6", "resnet18"):
        task = Task(
            setting=f"cifar10/{name}",
            data=DataConfig(name="cifar10", augment="crop-flip", validation=0.2),
            model=ModelConfig(name=name, options={"bias": False} if name == "conv6" else {}),
            shape={"num_classes": 10, "channels": 3, "image_size": 32},
            search=cifar,
            train=cifar,
            overhead=2000,
            ticket=replace(_SEARCHED, weight_init="kaiming_uniform"),
            runtime=RuntimeConfig(eval_every=5),
        )
        jobs += pareto(task, shares, 0.5)
    arxiv = replace(_ADAMW, epochs=400)
    jobs += twins(
        Task(
            setting="ogbn-arxiv/public/gin",
            data=DataConfig(name="ogbn-arxiv", graph_split="public"),
            model=ModelConfig(name="gin", options={"layers": 4, "hidden": 386}),
            shape={"num_classes": 40, "graph": True, "features": 128},
            search=arxiv,
            train=arxiv,
            overhead=2000,
            ticket=replace(_SEARCHED, weight_init="kaiming_uniform"),
            runtime=RuntimeConfig(),
        )
    )
    imagenet = replace(cifar, batch_size=256)
    task = Task(
        setting="imagenet/resnet50",
        data=DataConfig(name="imagenet", validation=0.2, augment="resized-crop-flip"),
        model=ModelConfig(name="torchvision/resnet50"),
        shape={"num_classes": 1000, "channels": 3, "image_size": 224},
        search=imagenet,
        train=imagenet,
        overhead=2000,
        ticket=replace(_SEARCHED, dynamic_scale=True),
        runtime=RuntimeConfig(eval_every=5),
    )
    return [*jobs, *pareto(task, (0.0, 0.5, 0.7), 0.5, "epl")]
