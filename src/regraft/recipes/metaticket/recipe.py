"""Meta-ticket against MAML, its relatives, and mask controls; scales in `notes.md`.

References:
    Chijiwa et al., "Meta-ticket: finding optimal subnetworks for few-shot learning within randomly
    initialized neural networks", NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from regraft.config import (
    DataConfig,
    EpisodeConfig,
    FewshotConfig,
    FewshotMethod,
    ModelConfig,
    OuterConfig,
    RuntimeConfig,
)
from regraft.jobs.fewshot.job import FewshotJob
from regraft.recipes.recipe import Recipe, Scale, assemble

from .claims import DOMAINS, read

OMNIGLOT = ("omniglot_evaluation", *DOMAINS)
_FEW_DOMAINS = OMNIGLOT[:4]
_WIDTHS = (256, 128, 64, 64)
_PAIR: tuple[FewshotMethod, ...] = ("meta-ticket", "maml")
_FEW: tuple[FewshotMethod, ...] = ("untrained", "meta-ticket", "random-mask", "maml")
_ALL: tuple[FewshotMethod, ...] = (
    "untrained",
    "meta-ticket",
    "random-mask",
    "shuffled-mask",
    "maml",
    "anil",
    "boil",
)

_RATES = {"meta-ticket": 10.0, "maml": 3e-3, "anil": 3e-3, "boil": 3e-3}
"""Outer learning rates at width 1; above it those of Adam are a third, as the second pilot chose."""


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    scales = {
        "smoke": Scale(_smoke, 2),
        "cpu": Scale(_cpu, 3),
        "gpu": Scale(_gpu, 6),
        "paper": Scale(_paper, 3),
    }
    names = {"cpu": ("test", *DOMAINS[:3]), "gpu": ("test", *DOMAINS)}.get(scale, ("test",))
    metrics = [(f"{n}_accuracy{end}", "%") for n in names for end in ("", "_by_support")]
    title = "Meta-ticket against MAML and mask controls"
    return assemble(
        __package__ or "", scales, scale, seeds, title=title, read=read, metrics=metrics
    )


def job(
    method: FewshotMethod,
    *,
    width: float = 1.0,
    ways: int = 5,
    shots: int = 1,
    steps: int = 1500,
    batchnorm: Literal["transductive", "support"] = "transductive",
    tests: Sequence[str] = OMNIGLOT,
    data: str = "omniglot",
    source: FewshotJob | None = None,
    test_tasks: int = 600,
    domain_tasks: int | None = None,
    curve_points: int = 8,
    setting: str | None = None,
) -> FewshotJob:
    """Return one arm on characters: the paper's MLP, four tasks a step, three inner steps in the test."""
    rate = _RATES.get(method)
    if rate is not None and method != "meta-ticket" and (width > 1 or shots > 1):
        rate /= 3
    name = setting or f"omniglot/{ways}way-{shots}shot/{batchnorm}/width={width:g}"
    return FewshotJob(
        setting=name,
        arm=method,
        control=_control(method),
        data=DataConfig(name=data, image_size=28, normalize="none", validation=0.0),
        model=ModelConfig(
            name="mlp", width=width, options={"widths": list(_WIDTHS), "norm": "batch"}
        ),
        episodes=EpisodeConfig(ways=ways, shots=shots, rotations=data == "omniglot"),
        fewshot=FewshotConfig(method=method, batchnorm=batchnorm),
        outer=OuterConfig(steps=steps, lr=rate),
        tests=tuple(tests),
        test_tasks=test_tasks,
        domain_tasks=domain_tasks,
        curve_points=curve_points,
        source=source,
        runtime=RuntimeConfig(accelerator="cpu", threads=1),
    )


def _control(method: str) -> str | None:
    if method == "meta-ticket":
        return "maml"
    return None if method == "untrained" else "untrained"


def _arms(methods: Sequence[FewshotMethod], **how: object) -> list[FewshotJob]:
    ticket = job("meta-ticket", **how)  # pyrefly: ignore
    jobs = []
    for method in methods:
        if method == "meta-ticket":
            jobs.append(ticket)
            continue
        source = ticket if method.endswith("-mask") else None
        jobs.append(job(method, source=source, **how))  # pyrefly: ignore
    return jobs


def _smoke() -> list[FewshotJob]:
    jobs = _arms(_FEW, ways=3, steps=60, test_tasks=50, data="digits", tests=(), setting="digits")
    small = ModelConfig(name="mlp", options={"widths": [32, 16], "norm": "batch"})
    return [_changed(j, model=small, data=replace(j.data, image_size=8)) for j in jobs]


def _changed(
    job: FewshotJob, *, inner_loop: Mapping[str, Any] | None = None, **how: Any
) -> FewshotJob:
    """Return a job with other fields, its source likewise; each keeps its own method."""
    source = None if job.source is None else _changed(job.source, inner_loop=inner_loop, **how)
    fewshot = replace(job.fewshot, **(inner_loop or {}))
    return replace(job, source=source, fewshot=fewshot, **how)


def _cpu() -> list[FewshotJob]:
    how = {"steps": 1000, "tests": _FEW_DOMAINS, "domain_tasks": 300, "curve_points": 4}
    return [
        *_arms(_ALL, **how),
        *_arms(_FEW, batchnorm="support", **how),
    ]


def _gpu() -> list[FewshotJob]:
    jobs: list[FewshotJob] = []
    for ways, shots in ((5, 1), (5, 5), (20, 1), (20, 5)):
        for width in (1, 2, 4, 8):
            jobs += _arms(_ALL, ways=ways, shots=shots, width=width, steps=30_000, test_tasks=1000)
    general = "emnist-to-omniglot/5way-1shot"
    jobs += _arms(
        _FEW,
        data="emnist",
        tests=("omniglot_evaluation", "digits"),
        steps=10_000,
        setting=general,
    )
    jobs += _arms(_FEW, batchnorm="support", steps=30_000, test_tasks=1000)
    return [_changed(j, runtime=RuntimeConfig(accelerator="cuda")) for j in jobs]


def _paper() -> list[FewshotJob]:
    """Return CIFAR-FS with the paper's MLP and mini-ImageNet with a ResNet (card, section 3).

    The images are folders `cifar_fs/CLASS/` and `mini_imagenet/CLASS/` below the data root; the test is
    on classes that are held out, as many as the published splits hold out.
    """
    jobs: list[FewshotJob] = []
    mlp = ModelConfig(name="mlp", options={"widths": [1024, 512, 256, 128], "norm": "batch"})
    resnet = ModelConfig(name="torchvision/resnet18")
    for shots in (1, 5):
        for name, model, size, inner in (
            ("cifar_fs", mlp, 32, 0.5),
            ("mini_imagenet", resnet, 84, 0.3),
        ):
            inner_loop = {"inner_lr": inner, "test_steps": 1}
            for arm in _arms(_FEW, shots=shots, steps=30_000, test_tasks=1000, data=name, tests=()):
                jobs.append(
                    _changed(
                        arm,
                        inner_loop=inner_loop,
                        setting=f"{name}/5way-{shots}shot",
                        model=model,
                        data=DataConfig(name=name, image_size=size, validation=0.0),
                        held_out=0.2,
                        runtime=RuntimeConfig(accelerator="auto"),
                    )
                )
    return jobs
