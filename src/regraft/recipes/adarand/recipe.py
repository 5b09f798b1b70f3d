"""AdaRand and its rivals where data are scarce: each tuned alike on validation, then compared.

`cpu`: source networks trained here on EMNIST's letters (27,000 images), fine-tuned on MNIST,
Fashion-MNIST and scikit-learn's digits. At 5 images a class all arms run on MNIST and
Fashion-MNIST; the five of `MAIN` run on all three at 5, 10, 25 and 100 images a class. Every arm of
every setting has 9 trials (learning rate and weight; for AdaRand its prior's rate too; or learning
rate alone) on at most 1,000 held-out images, at two selection seeds with 5
images a class and at one with more; ten other seeds are reported, each with a source network, a
draw of training images and an initialisation of its own.
45 minutes on two cores with some other work beside it. Expected at 5 images a class: AdaRand 85.5% on
MNIST and 63.4% on Fashion-MNIST, 4 to 5 points above plain fine-tuning, and no better than the class
means that stand still.

`gpu`: the same at 20 seeds with a wider network, Omniglot's background characters as a second
source, and all arms at every size (not measured yet). `paper`: the published settings of networks
with ImageNet's weights on the six fine-grained sets, as image folders `stanford_cars`, `cub`, `dtd`,
`aircraft`, `flowers` and `pets` below the data root, each with `train` and `test`; nothing is
chosen here, as the paper chose lambda = 1. SimCLR, Barlow Twins and CLIP are left out: their weights
are on no hub that timm or torchvision reads under one name. `smoke`: digits 5 to 9, then 0 to 4.

References:
    Yamaguchi et al., "Adaptive random feature regularization on fine-tuning deep neural networks",
    CVPR 2024, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig, TicketConfig
from regraft.jobs.base import Job, with_sources
from regraft.jobs.finetune.tuned_task import Task, Tuning
from regraft.jobs.train import TrainJob
from regraft.recipes.recipe import Recipe

from .arms import ARMS, MAIN, Budget, published, transfer
from .claims import read

_ANALYSED = ("plain", "adarand", "randreg_class", "randreg_uniform", "feature_norm")


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    build, default_seeds = {
        "smoke": (_smoke, 3),
        "cpu": (_cpu, 10),
        "gpu": (_gpu, 20),
        "paper": (_paper, 3),
    }[scale]
    runs = [
        job.with_seed(seed) for job in build() for seed in range(1, (seeds or default_seeds) + 1)
    ]
    return Recipe(
        name="adarand",
        scale=scale,
        title=f"AdaRand and its rivals on few images ({scale})",
        question=(
            "A pretrained network is fine-tuned on a few images of each class. Does drawing its "
            "features to random vectors whose class means adapt (AdaRand) give a higher test accuracy "
            "than plain fine-tuning and training from scratch? Than the same with means that stand "
            "still (randreg_class), and than other methods? Each has its own learning rate and weight, "
            "chosen on validation images with equal numbers of trials."
        ),
        jobs=with_sources(runs),
        read=read,
    )


def source(
    data: DataConfig, model: ModelConfig, optim: OptimConfig, runtime: RuntimeConfig
) -> TrainJob:
    """Return the training of a source network."""
    classes = ""
    if data.only_classes:
        classes = f"/classes={data.only_classes[0]}-{data.only_classes[-1]}"
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
    task = Task(
        data=replace(data, only_classes=(0, 1, 2, 3, 4)),
        model=model,
        source=start,
        shots=5,
        optim=OptimConfig(
            weight_decay=0.0, nesterov=True, epochs=40, batch_size=25, schedule="cosine"
        ),
    )
    budget = Budget(rates=(0.1, 0.3), fine=(0.01, 0.03, 0.1, 0.2, 0.3, 0.6), seeds=(1001,))
    points = dict.fromkeys(_ANALYSED, 4)
    jobs = transfer(
        "digits=5-9-to-digits=0-4/shots=5",
        task,
        tuple(ARMS),
        budget=budget,
        runtime=runtime,
        points=points,
    )
    more = replace(task, shots=20, optim=replace(task.optim, epochs=10))
    return [
        *jobs,
        *transfer(
            "digits=5-9-to-digits=0-4/shots=20", more, MAIN[:4], budget=budget, runtime=runtime
        ),
    ]


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


def target(name: str, start: TrainJob, shots: int, *, steps: int, test_images: int | None) -> Task:
    """Return a target with few images of each of its ten classes."""
    epochs = max(1, round(steps / max(1, -(-10 * shots // BATCH))))
    return Task(
        data=TARGETS[name],
        model=start.model,
        source=start,
        shots=shots,
        test_images=test_images,
        optim=OptimConfig(
            weight_decay=0.0, nesterov=True, epochs=epochs, batch_size=BATCH, schedule="cosine"
        ),
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
    both = ("mnist", "fashion_mnist")
    plan = [
        *(("emnist", onto, 5, tuple(ARMS)) for onto in both),
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


_FINE_GRAINED = ("stanford_cars", "cub", "dtd", "aircraft", "flowers", "pets")
_CONVNETS = ("resnet50", "resnet18")
_TRANSFORMERS = ("vit_b_32", "vit_b_16")


def _paper() -> list[Job]:
    """Return the published settings (card sections 3 and 4), as far as they can be read.

    Where the card knows none for a rival, the rival's own.
    """
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
            jobs += published(
                f"imagenet-to-{data}/{name}/share=1",
                _fine_grained(data, name, convnet),
                _published(convnet.lr),
                runtime=runtime,
            )
    cars = _FINE_GRAINED[0]
    for name in _TRANSFORMERS:
        jobs += published(
            f"imagenet-to-{cars}/{name}/share=1",
            _fine_grained(cars, name, transformer),
            _published(transformer.lr),
            runtime=runtime,
        )
    reduced = [
        name for name in _published(convnet.lr) if name in MAIN or name.startswith("randreg")
    ]
    for share in (0.1, 0.25, 0.5):
        jobs += published(
            f"imagenet-to-{cars}/resnet50/share={share:g}",
            replace(_fine_grained(cars, "resnet50", convnet), share=share),
            {name: t for name, t in _published(convnet.lr).items() if name in reduced},
            runtime=runtime,
        )
    return jobs


def _fine_grained(data: str, network: str, optim: OptimConfig) -> Task:
    return Task(
        data=DataConfig(name=data, image_size=224, augment="resized-crop-flip"),
        model=ModelConfig(name=f"torchvision/{network}"),
        pretrained=True,
        validation_images=None,
        optim=optim,
        mean_std=(0.5, 0.5),
    )


def _published(lr: float) -> dict[str, Tuning]:
    # The paper's lambda is 1 without any scale, its prior's Adam rate 1e-2.
    raw: dict[str, Any] = {"normalise": False}
    adarand: dict[str, Any] = {**raw, "prior_lr": 1e-2, "alpha": 0.5}
    own: dict[str, tuple[str, dict[str, Any], float | None]] = {
        "plain": ("plain", {}, None),
        "adarand": ("adarand", adarand, 1.0),
        "adarand_orthogonal": ("adarand", {**adarand, "prior": "orthogonal"}, 1.0),
        "adarand_without_intra": ("adarand", {**adarand, "intra": False}, 1.0),
        "adarand_without_inter": ("adarand", {**adarand, "inter": False}, 1.0),
        **{
            f"randreg_{kind}": ("randreg", {**raw, "kind": kind}, 1.0)
            for kind in ("class", "source", "normal", "uniform")
        },
        "feature_norm": ("feature_norm", raw, 1.0),
        "l2sp": ("l2sp", {}, 0.01),
        # The usual 0.01 is for a sum over the batch, here 64 images.
        "delta": ("delta", {"attention": True}, 0.64),
        "bss": ("bss", {}, 1e-3),
        "core_tuning": ("core_tuning", {}, 0.1),
        "co_tuning": ("co_tuning", {}, 2.3),
        "dr_tune": ("dr_tune", {}, 1.0),
    }
    return {
        name: Tuning(method=method, options=options, lr=lr, weight=weight)
        for name, (method, options, weight) in own.items()
    }
