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
from regraft.jobs.fewshot.choice import RateChoice
from regraft.jobs.fewshot.job import FewshotJob
from regraft.recipes.recipe import Recipe, Scale, assemble
from regraft.recipes.selection import SELECTION

from .claims import DOMAINS, read

OMNIGLOT = ("omniglot_evaluation", *DOMAINS)
_FEW_DOMAINS = OMNIGLOT[:4]
HEADLINE = "omniglot/5way-1shot/transductive/width=1"
LONG = "omniglot/5way-1shot/transductive-10000-steps/width=1"
_TEN_CLASSES = ("mnist", "fashion_mnist", "digits")
_WIDTHS = (256, 128, 64, 64)
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

_ADAM = (3e-4, 1e-3, 3e-3, 1e-2)
_RATES = {"meta-ticket": (3.0, 10.0, 30.0, 100.0), "maml": _ADAM, "anil": _ADAM, "boil": _ADAM}
"""Outer learning rates that are tried, as many of each method."""

_TUNING_SEEDS = (1001, 1002)
_TUNING_STEPS = 400

EQUAL_TIME = 1.8
"""Times that a step of the ticket takes as long as one of MAML: an estimate, of 1.5 to 2.2.

What both arms took is measured: the claim names it, and decides nothing where it is not as much.
"""


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    scales = {
        "smoke": Scale(_smoke, 2),
        "cpu": Scale(_cpu, lambda job: 6 if job.setting == HEADLINE else 3),
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
    arm: str | None = None,
    tuned: bool = True,
    accelerator: Literal["cpu", "cuda"] = "cpu",
) -> FewshotJob:
    """Return one arm on characters: the paper's MLP, four tasks a step, three inner steps in the test."""
    name = setting or f"omniglot/{ways}way-{shots}shot/{batchnorm}/width={width:g}"
    made = FewshotJob(
        setting=name,
        arm=arm or method,
        control=_control(method),
        data=DataConfig(name=data, image_size=28, normalize="none", validation=0.0),
        model=ModelConfig(
            name="mlp", width=width, options={"widths": list(_WIDTHS), "norm": "batch"}
        ),
        episodes=EpisodeConfig(ways=ways, shots=shots, rotations=data == "omniglot"),
        fewshot=FewshotConfig(method=method, batchnorm=batchnorm),
        outer=OuterConfig(steps=steps),
        tests=tuple(t for t in tests if ways <= 10 or t not in _TEN_CLASSES),
        test_tasks=test_tasks,
        domain_tasks=domain_tasks,
        curve_points=curve_points,
        source=source,
        runtime=RuntimeConfig(accelerator=accelerator, threads=1 if accelerator == "cpu" else None),
    )
    return replace(made, choice=_choice(made)) if tuned and method in _RATES else made


def _choice(made: FewshotJob) -> RateChoice:
    """Return the choice of a method's rate on held-out background characters of Omniglot.

    It is one for all settings of equal ways, shots and width, whatever their steps and statistics.
    """
    ways, shots, width = made.episodes.ways, made.episodes.shots, made.model.width
    method = made.fewshot.method
    setting = f"{SELECTION}omniglot/{ways}way-{shots}shot/width={width:g}"
    trials = [
        replace(
            made,
            setting=setting,
            arm=method,
            control=None,
            data=replace(made.data, name="omniglot"),
            episodes=replace(made.episodes, rotations=True),
            fewshot=replace(made.fewshot, batchnorm="transductive"),
            outer=replace(made.outer, steps=_TUNING_STEPS, lr=rate),
            tests=(),
            test_tasks=200,
            curve_points=1,
        ).with_seed(seed)
        for rate in _RATES[method]
        for seed in _TUNING_SEEDS
    ]
    first = replace(made.runtime, seed=_TUNING_SEEDS[0])
    return RateChoice(setting=setting, arm=method, runtime=first, trials=tuple(trials))


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
    jobs = _arms(
        _FEW,
        ways=3,
        steps=60,
        test_tasks=50,
        tuned=False,
        data="digits",
        tests=(),
        setting="digits",
    )
    small = ModelConfig(name="mlp", options={"widths": [32, 16], "norm": "batch"})
    return [_changed(j, model=small, data=replace(j.data, image_size=8)) for j in jobs]


def _changed(
    job: FewshotJob, *, inner_loop: Mapping[str, Any] | None = None, **how: Any
) -> FewshotJob:
    """Return a job with other fields, its source likewise; each keeps its own method."""
    source = None if job.source is None else _changed(job.source, inner_loop=inner_loop, **how)
    fewshot = replace(job.fewshot, **(inner_loop or {}))
    return replace(job, source=source, fewshot=fewshot, **how)


_GENERAL: dict[str, Any] = {
    "data": "emnist",
    "tests": ("omniglot_evaluation", "digits"),
    "setting": "emnist-to-omniglot/5way-1shot",
}
"""From a general set, many drawings of few letters, to a specific one."""


def _cpu() -> list[FewshotJob]:
    how: dict[str, Any] = {"tests": _FEW_DOMAINS, "domain_tasks": 300, "curve_points": 5}
    steps = 2000
    equal_time = job("maml", steps=round(EQUAL_TIME * steps), arm="maml-equal-time", **how)
    how["steps"] = steps
    return [
        *_arms(_ALL, **how),
        equal_time,
        *_arms(_FEW, shots=5, **how),
        *_arms(_FEW, width=2, **how),
        *_arms(_FEW, batchnorm="support", **how),
        *_arms(_FEW, width=4, **how),
        *_arms(_FEW, **{**how, **_GENERAL}),
        *_arms(_FEW, **{**how, "steps": 10_000, "setting": LONG}),
        *_arms(_FEW, ways=20, **how),
    ]


def _gpu() -> list[FewshotJob]:
    how: dict[str, Any] = {"steps": 30_000, "test_tasks": 1000, "accelerator": "cuda"}
    jobs: list[FewshotJob] = []
    for ways, shots in ((5, 1), (5, 5), (20, 1), (20, 5)):
        for width in (1, 2, 4, 8):
            jobs += _arms(_ALL, ways=ways, shots=shots, width=width, **how)
    return [
        *jobs,
        *_arms(_FEW, **{**how, **_GENERAL, "steps": 10_000}),
        *_arms(_FEW, batchnorm="support", **how),
    ]


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
            for arm in _arms(
                _FEW, shots=shots, steps=30_000, test_tasks=1000, data=name, tests=(), tuned=False
            ):
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
