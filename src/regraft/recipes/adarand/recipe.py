"""AdaRand and its rivals where data are scarce: each tuned alike on validation; scales in `notes.md`.

References:
    Yamaguchi et al., "Adaptive random feature regularization on fine-tuning deep neural networks",
    CVPR 2024, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig, TicketConfig
from regraft.jobs.base import Job
from regraft.jobs.finetune.tuned_task import TunedTask
from regraft.jobs.train import TrainJob
from regraft.recipes.recipe import Recipe, Scale, assemble
from regraft.recipes.trials import Budget, Staged

from .arms import ARMS, MAIN, published, transfer
from .claims import read

_ANALYSED = ("plain", "adarand", "randreg_class", "randreg_uniform", "feature_norm")


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    scales = {
        "smoke": Scale(_smoke, 3),
        "cpu": Scale(_cpu, 10),
        "gpu": Scale(_gpu, 20),
        "paper": Scale(_paper, 3),
        "photographs": Scale(_photographs, 5),
        "characters": Scale(_characters, 5),
    }
    title = "AdaRand and its rivals on few images"
    return assemble(__package__ or "", scales, scale, seeds, title=title, read=read)


def _tuned(epochs: int, batch_size: int) -> OptimConfig:
    steps: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size}
    return OptimConfig(weight_decay=0.0, nesterov=True, schedule="cosine", **steps)


def source(
    data: DataConfig, model: ModelConfig, optim: OptimConfig, runtime: RuntimeConfig
) -> TrainJob:
    """Return the training of a source network."""
    only = data.only_classes
    classes = f"/classes={only[0]}-{only[-1]}" if only else ""
    return TrainJob(
        setting=f"sources/{data.name}{classes}/{model.name}",
        arm="dense",
        data=data,
        model=model,
        ticket=TicketConfig(method="dense"),
        optim=optim,
        runtime=runtime,
    )


def _smoke() -> list[Job]:
    runtime = RuntimeConfig(accelerator="cpu", threads=1, eval_every=5)
    model = ModelConfig(name="conv_small", options={"average": True})
    data = DataConfig(name="digits", validation=0.3)
    start = source(
        replace(data, only_classes=(5, 6, 7, 8, 9)),
        model,
        OptimConfig(lr=0.2, epochs=20, batch_size=50, schedule="cosine"),
        runtime,
    )
    task = TunedTask(
        data=replace(data, only_classes=(0, 1, 2, 3, 4)),
        model=model,
        source=start,
        shots=5,
        optim=_tuned(40, 25),
    )
    budget = Budget(rates=(0.1, 0.3), fine=(0.01, 0.03, 0.1, 0.2, 0.3, 0.6), seeds=(1001,))
    common: dict[str, Any] = {"budget": budget, "runtime": runtime}
    points, pair = dict.fromkeys(_ANALYSED, 4), "digits=5-9-to-digits=0-4"
    jobs = transfer(f"{pair}/shots=5", task, tuple(ARMS), points=points, **common)
    more = replace(task, shots=20, optim=replace(task.optim, epochs=10))
    return [*jobs, *transfer(f"{pair}/shots=20", more, MAIN[:4], **common)]


MODEL = ModelConfig(name="conv_small", width=1.5, options={"average": True})
LETTERS = DataConfig(name="emnist", train_size=27000, validation=0.02, augment="crop")
CHARACTERS = DataConfig(name="omniglot", image_size=28, validation=0.05, augment="crop")
TARGETS = {
    "mnist": DataConfig(name="mnist", augment="crop"),
    "fashion_mnist": DataConfig(name="fashion_mnist", augment="crop"),
    "digits": DataConfig(name="digits", image_size=28, validation=0.2, augment="crop"),
}
TRAIN = OptimConfig(lr=0.2, weight_decay=1e-4, epochs=4, batch_size=128, schedule="cosine")
BATCH = 50


def target(
    name: str, start: TrainJob, shots: int, *, steps: int, test_images: int | None
) -> TunedTask:
    """Return a target with few images of each of its ten classes."""
    epochs = max(1, round(steps / max(1, -(-10 * shots // BATCH))))
    return TunedTask(
        data=TARGETS[name],
        model=start.model,
        source=start,
        shots=shots,
        test_images=test_images,
        optim=_tuned(epochs, BATCH),
    )


def _grid(
    starts: dict[str, TrainJob],
    plan: Sequence[tuple[str, str, int, Sequence[str]]],
    *,
    budget: Budget,
    runtime: RuntimeConfig,
    steps: int,
    test_images: int | None,
    more: int,
) -> list[Job]:
    """Return the settings of a plan: source, target, images of a class, arms.

    With 10 images a class or more the first `more` selection seeds choose.
    """
    jobs: list[Job] = []
    for name, onto, shots, arms in plan:
        # A hundred images of a class are twenty steps an epoch: twice the length serves them.
        length = steps if shots < 100 else 2 * steps
        # Judging a trial takes more seeds where a few images more or less make a difference.
        own = budget if shots < 10 else replace(budget, seeds=budget.seeds[:more])
        task = target(onto, starts[name], shots, steps=length, test_images=test_images)
        points = dict.fromkeys(_ANALYSED, 6) if len(arms) > len(MAIN) else {}
        jobs += transfer(
            f"{name}-to-{onto}/shots={shots}",
            task,
            arms,
            budget=own,
            runtime=runtime,
            points=points,
        )
    return jobs


def _cpu() -> list[Job]:
    runtime = RuntimeConfig(accelerator="cpu", threads=1)
    starts = {"emnist": source(LETTERS, MODEL, TRAIN, runtime)}
    plan = [
        *(("emnist", onto, 5, tuple(ARMS)) for onto in ("mnist", "fashion_mnist")),
        ("emnist", "digits", 5, MAIN),
        *(("emnist", onto, shots, MAIN) for onto in TARGETS for shots in (10, 25, 100)),
    ]
    return _grid(
        starts, plan, budget=Budget(), runtime=runtime, steps=120, test_images=5000, more=1
    )


def _gpu() -> list[Job]:
    runtime = RuntimeConfig(accelerator="cuda", threads=4)
    model = replace(MODEL, width=4)
    starts = {
        "emnist": source(replace(LETTERS, train_size=None), model, TRAIN, runtime),
        "omniglot": source(CHARACTERS, model, replace(TRAIN, epochs=20), runtime),
    }
    plan = [
        (name, onto, shots, tuple(ARMS))
        for name in starts
        for onto in TARGETS
        for shots in (5, 10, 25, 100)
    ]
    budget = Budget(seeds=(1001, 1002, 1003))
    return _grid(starts, plan, budget=budget, runtime=runtime, steps=300, test_images=None, more=2)


_PHOTOGRAPHS = ("plain", "adarand", "randreg_class", "linear_probe", "lp_ft")


def _photographs() -> list[Job]:
    """Return ImageNet's weights on few photographs: the paper's regime, as far as two cores allow."""
    runtime = RuntimeConfig(accelerator="cpu", threads=1, channels_last=True)
    task = TunedTask(
        data=DataConfig(
            name="trashnet", image_size=96, validation=0.4, augment="resized-crop-flip"
        ),
        model=ModelConfig(name="timm/tf_efficientnet_lite0"),
        pretrained=True,
        shots=5,
        validation_images=300,
        test_images=500,
        optim=_tuned(200, 30),
    )
    more: dict[str, Any] = {"budget": Staged(), "runtime": runtime}
    return [*transfer("imagenet-to-trashnet/shots=5", task, _PHOTOGRAPHS, **more)]


def _characters() -> list[Job]:
    """Return letters to fifty characters, in runs so long that class means have time to move."""
    runtime = RuntimeConfig(accelerator="cpu", threads=1)
    task = TunedTask(
        data=replace(CHARACTERS, only_classes=tuple(range(50)), validation=0.5),
        model=MODEL,
        source=source(LETTERS, MODEL, TRAIN, runtime),
        shots=5,
        optim=_tuned(400, BATCH),
    )
    more: dict[str, Any] = {"budget": Staged(rates=(0.05, 0.15)), "runtime": runtime}
    return [*transfer("emnist-to-omniglot=50/shots=5", task, _PHOTOGRAPHS[:3], **more)]


_FINE_GRAINED = ("stanford_cars", "cub", "dtd", "aircraft", "flowers", "pets")
_CONVNETS = ("resnet50", "resnet18")
_TRANSFORMERS = ("vit_b_32", "vit_b_16")


def _paper() -> list[Job]:
    """Return the published settings (card sections 3 and 4), as far as they can be read."""
    runtime = RuntimeConfig(threads=4, eval_every=5, precision="32-true")
    convnet = OptimConfig(
        lr=0.01, nesterov=True, weight_decay=0.0, epochs=200, batch_size=64,
        schedule="multistep-30-60-80", select="best",
    )  # fmt: skip
    transformer = OptimConfig(
        optimizer="adamw", lr=3e-5, weight_decay=0.1, epochs=200, batch_size=64, schedule="cosine",
        select="best",
    )  # fmt: skip
    jobs: list[Job] = []
    for data in _FINE_GRAINED:
        for name in _CONVNETS:
            task = _fine_grained(data, name, convnet)
            jobs += published(f"imagenet-to-{data}/{name}/share=1", task, runtime)
    cars = _FINE_GRAINED[0]
    for name in _TRANSFORMERS:
        task = _fine_grained(cars, name, transformer)
        jobs += published(f"imagenet-to-{cars}/{name}/share=1", task, runtime)
    reduced = [name for name in ARMS if name in MAIN or name.startswith("randreg")]
    for share in (0.1, 0.25, 0.5):
        task = replace(_fine_grained(cars, "resnet50", convnet), share=share)
        jobs += published(
            f"imagenet-to-{cars}/resnet50/share={share:g}", task, runtime, only=reduced
        )
    return jobs


def _fine_grained(data: str, network: str, optim: OptimConfig) -> TunedTask:
    return TunedTask(
        data=DataConfig(name=data, image_size=224, augment="resized-crop-flip"),
        model=ModelConfig(name=f"torchvision/{network}"),
        pretrained=True,
        validation_images=None,
        optim=optim,
        mean_std=(0.5, 0.5),
    )
