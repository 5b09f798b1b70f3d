"""MGR, PCR and controls on few labels, with generators trained on exactly these; scales in `notes.md`.

References:
    Yamaguchi et al., "Regularizing neural networks with meta-learning generative models", NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from regraft.config import (
    DataConfig,
    GeneratorConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RuntimeConfig,
    SetConfig,
)
from regraft.jobs.base import Job
from regraft.jobs.generate.generator import GeneratorJob
from regraft.jobs.generate.pretrain import PretrainJob
from regraft.jobs.generate.regularised import RegularisedJob
from regraft.recipes.recipe import Recipe, Scale, assemble

from .arms import CORE, LATER, LEFT_OUT, LossWeights, make, plans
from .claims import QUALITY, RATIO, SMALLEST, read

WEIGHTS = LossWeights(
    pcr=10.0, ce=0.1, head=0.1, self_training=0.3, strong_ce=0.3, real=3.0, real_strong=1.0
)
"""Best of grids, `strong_ce` at an edge, on other images at seeds 101 and 102 (`choose_mgr.py`)."""

GOOD = replace(WEIGHTS, ce=1.0)
"""The same with the generator that was trained on 5,000 other images."""

_CPU = RuntimeConfig(accelerator="cpu", threads=1, log_every=1000, checkpoint_seconds=60.0)
_VAE: dict[str, Any] = {"latent": 16, "hidden": 200}
_GENERATOR_STEPS = 400


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    scales = {
        "smoke": Scale(_smoke, 2),
        "cpu": Scale(_cpu, _seeds),
        "gpu": Scale(_gpu, 8),
        "paper": Scale(_paper, 3),
    }
    title = "MGR and PCR against their controls"
    return assemble(__package__ or "", scales, scale, seeds, title=title, read=read)


def target(
    name: str,
    size: int,
    *,
    setting: str | None = None,
    steps: int = 120,
    batch: int = 16,
    model: ModelConfig | None = None,
    test: SetConfig | None = None,
    generator: SetConfig | None = None,
    generator_steps: int = _GENERATOR_STEPS,
    start: PretrainJob | None = None,
    image_size: int | None = None,
    runtime: RuntimeConfig = _CPU,
) -> RegularisedJob:
    """Return the base arm of a setting: its labels, its generator, and what the controls may look at.

    Args:
        name: The set.
        size: Labels, stratified, drawn by the run's seed from the first half of the training images.
        setting: Name of the setting, NAME/SIZE by default.
        steps: Optimiser steps.
        batch: Real images a step.
        model: The network.
        test: What the result is measured on; 4,000 of the test images by default.
        generator: What the generator is trained on; exactly the labels by default.
        generator_steps: Its optimiser steps.
        start: What the network starts from.
        image_size: Side of the images, of other sets than small ones.
        runtime: Where to compute.
    """
    data = DataConfig(name=name, validation=0.0, image_size=image_size)
    labels = SetConfig(data=data, part="first_half", size=size)
    setting = setting or f"{name}/{size}"
    trained_on = generator or labels
    which = "vae" if generator is None else "vae_other"
    which += "" if generator_steps == _GENERATOR_STEPS else f"_{generator_steps}"
    return RegularisedJob(
        setting=setting,
        arm="base",
        target=labels,
        test=test or SetConfig(data=data, part="test", size=4000),
        model=model or ModelConfig(name="conv_small", width=0.5),
        steps=steps,
        optim=OptimConfig(lr=0.05, batch_size=batch, epochs=1, schedule="cosine"),
        start=start,
        generator=GeneratorJob(
            setting=f"generators/{name}/{trained_on.size}",
            arm=which,
            images=trained_on,
            generator=GeneratorConfig(options=_VAE, steps=generator_steps, batch_size=64),
            runtime=runtime,
        ),
        more=SetConfig(data=data, part="second_half", size=trained_on.size),
        oracle=SetConfig(data=data, part="second_half", size=1000),
        runtime=runtime,
    )


def _smoke() -> list[Job]:
    data = DataConfig(name="digits", validation=0.0)
    like = target(
        "digits", 50, steps=30, test=SetConfig(data=data, part="test"), generator_steps=60
    )
    names = [n for n in plans(WEIGHTS) if n != "mgr_oracle"]
    return list(make(like, WEIGHTS, names))


def _cpu() -> list[Job]:
    """Return every arm at 50 labels, then curves, a pretrained start, and further attempts."""
    names = [n for n in plans(WEIGHTS) if n not in LEFT_OUT]
    first = [n for n in names if n not in LATER]
    jobs: list[Job] = [*make(target("fashion_mnist", 50), WEIGHTS, first)]
    jobs += make(target("mnist", 50), WEIGHTS, CORE)
    jobs += _sizes("fashion_mnist", {200: (200, 400), 1000: (300, 600), 5000: (500, 1000)}, CORE)
    jobs += _quality(((50, 25), (50, 100), (5000, 2000)), ("base", "gda", "pcr"))
    jobs += _ratios((0.25, 4.0, 16.0))
    for name in ("fashion_mnist", "mnist"):
        jobs += _pretrained(name, 500)
    later = make(target("fashion_mnist", 50), WEIGHTS, names)
    return jobs + [job for job in later if job.arm in LATER]


def _seeds(job: Job) -> int:
    """Return eight seeds for the arms at 50 labels, three for curves and further attempts."""
    whole = job.setting in SMALLEST and job.arm not in (*LATER, "cas")
    return 8 if whole else 3


def _gpu() -> list[Job]:
    """Return longer curves of more sets and arms, and CIFAR-10-JPEG."""
    runtime = RuntimeConfig(accelerator="auto", threads=4, log_every=1000)
    jobs: list[Job] = [*make(target("fashion_mnist", 50), WEIGHTS, plans(WEIGHTS))]
    for name in ("fashion_mnist", "mnist", "emnist"):
        sizes = {20: (120, 400), 100: (300, 400), 500: (300, 400), 1000: (1500, 400)}
        jobs += _sizes(name, {**sizes, 5000: (1500, 400)}, (*CORE, "gda_real"), runtime=runtime)
    grown = ((50, 100), (500, 400), (5000, 2000))
    jobs += _quality(grown, (*CORE, "gda_real", "more_real"))
    for name in ("fashion_mnist", "mnist"):
        jobs += _pretrained(name, 1000)
    jobs += _ratios((0.25, 4.0, 16.0))
    for size in (500, 5000):
        like = target(
            "cifar10_jpeg",
            size,
            steps=2000,
            batch=64,
            model=ModelConfig(name="resnet20"),
            generator_steps=5000,
            runtime=runtime,
        )
        jobs += make(like, WEIGHTS, (*CORE, "gda_real"))
    return jobs


def _sizes(
    name: str,
    steps: Mapping[int, tuple[int, int]],
    arms: Iterable[str],
    runtime: RuntimeConfig = _CPU,
) -> list[Job]:
    """Return a curve over the number of labels, with steps of the network and of its generator."""
    jobs: list[Job] = []
    for size, (count, generator) in steps.items():
        like = target(name, size, steps=count, generator_steps=generator, runtime=runtime)
        jobs += make(like, WEIGHTS, arms)
    return jobs


def _quality(generators: Iterable[tuple[int, int]], arms: Iterable[str]) -> list[Job]:
    """Return generators by (images, steps), what each is worth, and what is gained with it.

    One of 50 images has the labels themselves, one of more has other images. The generator of every
    other setting of 50 labels is scored as well.
    """
    jobs: list[Job] = [_score(target("fashion_mnist", 50))]
    data = DataConfig(name="fashion_mnist", validation=0.0)
    for size, count in generators:
        other = SetConfig(data=data, part="second_half", size=size)
        like = target(
            "fashion_mnist",
            50,
            setting=f"{QUALITY}{size}x{count}",
            generator=None if size == 50 else other,
            generator_steps=count,
        )
        jobs += make(like, GOOD if size == 5000 else WEIGHTS, arms)
        jobs.append(_score(like))
    return jobs


def _score(like: RegularisedJob) -> RegularisedJob:
    """Return a training on generated images alone: its accuracy is the generator's score (CAS)."""
    (job,) = make(like, LossWeights(), ("gda",))
    return replace(job, arm="cas", control=None, labels=False, steps=300)


def _pretrained(name: str, steps: int) -> list[Job]:
    """Return the core arms from a network that was trained on letters."""
    letters = DataConfig(name="emnist", validation=0.0)
    start = PretrainJob(
        setting="start/emnist",
        arm="real",
        model=ModelConfig(name="conv_small", width=0.5),
        real=SetConfig(data=letters, size=20000),
        pretrain=PretrainConfig(steps=steps),
        runtime=_CPU,
    )
    return list(make(target(name, 50, setting=f"{name}/50/pretrained", start=start), WEIGHTS, CORE))


def _ratios(ratios: Iterable[float]) -> list[Job]:
    """Return a curve over generated images for each real one; it is 1 in every other setting."""
    jobs: list[Job] = []
    for ratio in ratios:
        like = target("fashion_mnist", 50, setting=f"{RATIO}{ratio:g}")
        jobs += make(like, WEIGHTS, ("base", "gda", "pcr"), batch=round(16 * ratio))
    return jobs


def _paper() -> list[Job]:
    """Return ResNet-18 from the hub's weights on six fine-grained sets; bring a generator for each."""
    runtime = RuntimeConfig(accelerator="auto", eval_every=10)
    jobs: list[Job] = []
    for name in ("aircraft", "birds", "cars", "dtd", "flowers", "pets"):
        like = target(
            name,
            3000,
            steps=20000,
            batch=64,
            model=ModelConfig(name="torchvision/resnet18"),
            generator_steps=50000,
            image_size=224,
            runtime=runtime,
        )
        jobs += make(like, WEIGHTS, (*CORE, "gda_head", "gda_ssl", "gda_real"))
    return jobs
