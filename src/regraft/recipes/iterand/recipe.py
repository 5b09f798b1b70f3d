"""IteRand against edge-popup at equal width, and how much narrower it may be; scales in `notes.md`.

References:
    Chijiwa et al., "Pruning randomly initialized neural networks with iterative randomization",
    NeurIPS 2021, section 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from regraft.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    TicketConfig,
    TicketMethod,
)
from regraft.jobs.train import TrainJob
from regraft.recipes.recipe import Recipe, Scale, assemble

from .claims import SEARCHES, read

_INITS = {"constant": "signed_kaiming_constant", "uniform": "kaiming_uniform"}
_CONTROLS: tuple[TicketMethod, ...] = ("random_mask", "random_mask_trained", "shuffled_mask")


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    scales = {
        "smoke": Scale(_smoke, 3),
        "cpu": Scale(_cpu, 5),
        "gpu": Scale(_gpu, 3),
        "paper": Scale(_paper, 3),
    }
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


def _smoke() -> list[TrainJob]:
    optim = OptimConfig(lr=0.4, epochs=100, batch_size=64)
    return _arms(
        "digits/conv_small/constant/width=0.5",
        data=DataConfig(name="digits", validation=0.1),
        model=ModelConfig(name="conv_small", width=0.5),
        ticket=TicketConfig(sparsity=0.5, every=24, rate=0.1),
        search=optim,
        dense=replace(optim, lr=0.2),
        runtime=RuntimeConfig(accelerator="cpu", threads=1, eval_every=5),
    )


def _cpu() -> list[TrainJob]:
    optim = OptimConfig(lr=0.8, epochs=5, batch_size=128)
    jobs: list[TrainJob] = []
    for law, init in _INITS.items():
        for width in (0.25, 0.5, 1.0, 1.5):
            setting = _arms(
                f"fashion_mnist/conv_small/{law}/width={width:g}",
                data=DataConfig(name="fashion_mnist", validation=0.1),
                model=ModelConfig(name="conv_small", width=width),
                ticket=TicketConfig(weight_init=init, sparsity=0.5, every=30, rate=0.1),  # pyrefly: ignore
                search=optim,
                dense=replace(optim, lr=0.2),
                runtime=RuntimeConfig(accelerator="cpu", threads=1),
                controls=_CONTROLS if (law, width) == ("uniform", 0.5) else (),
            )
            # The dense network does not depend on the law of the frozen weights.
            jobs += setting if law == "uniform" else [j for j in setting if j.arm != "dense"]
    return jobs


def _gpu() -> list[TrainJob]:
    jobs: list[TrainJob] = []
    for name, sparsity, lr, decay, dense_lr in (
        ("conv6", 0.5, 0.3, 1e-4, 0.01),
        ("resnet18", 0.6, 0.1, 5e-4, 0.1),
    ):
        optim = OptimConfig(lr=lr, weight_decay=decay, epochs=12, batch_size=128)
        for width in (0.25, 0.5):
            jobs += _arms(
                f"cifar10_jpeg/{name}/constant/width={width:g}",
                data=DataConfig(name="cifar10_jpeg", augment="crop-flip"),
                model=ModelConfig(name=name, width=width),
                ticket=TicketConfig(sparsity=sparsity, every=40, rate=0.1),
                search=optim,
                dense=replace(optim, lr=dense_lr),
                runtime=RuntimeConfig(
                    accelerator="cuda", precision="bf16-mixed", threads=4, eval_every=4
                ),
            )
    return jobs


def _paper() -> list[TrainJob]:
    """Return the published settings."""
    jobs: list[TrainJob] = []
    runtime = RuntimeConfig(accelerator="auto", eval_every=5)
    for name, sparsity, lr, dense_lr, decay in (
        ("conv2", 0.5, 0.3, 0.01, 1e-4),
        ("conv4", 0.5, 0.3, 0.01, 1e-4),
        ("conv6", 0.5, 0.3, 0.01, 1e-4),
        ("resnet18", 0.6, 0.1, 0.1, 5e-4),
        ("resnet34", 0.6, 0.1, 0.1, 5e-4),
    ):
        optim = OptimConfig(lr=lr, weight_decay=decay, epochs=100, batch_size=128)
        for law, init in _INITS.items():
            for width in (0.25, 0.5, 1.0, 2.0):
                jobs += _arms(
                    f"cifar10/{name}/{law}/width={width:g}",
                    data=DataConfig(name="cifar10", augment="resized-crop-flip"),
                    model=ModelConfig(name=name, width=width),
                    ticket=TicketConfig(weight_init=init, sparsity=sparsity, every=300, rate=0.1),  # pyrefly: ignore
                    search=optim,
                    dense=replace(optim, lr=dense_lr),
                    runtime=runtime,
                )
    imagenet = OptimConfig(
        lr=0.1,
        weight_decay=1e-4,
        epochs=105,
        batch_size=128,
        warmup_epochs=5,
        cooldown_epochs=5,
        cooldown_lr=1e-5,
    )
    jobs += _arms(
        "imagenet/resnet50/constant/width=1",
        data=DataConfig(name="imagenet", validation=0.01, augment="resized-crop-flip"),
        model=ModelConfig(name="torchvision/resnet50"),
        ticket=TicketConfig(sparsity=0.7, every=1000, rate=0.1),
        search=imagenet,
        dense=imagenet,
        runtime=runtime,
    )
    return jobs
