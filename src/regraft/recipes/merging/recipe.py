"""Merging networks of different data sets, with and without data; scales in `notes.md`.

References:
    Yamada et al., "Revisiting permutation symmetry for merging models between different datasets",
    arXiv 2306.05641 (v2: "Toward data efficient model merging between different datasets without
    performance degradation", ACML 2024).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig, TicketConfig
from regraft.generators import CondenseConfig
from regraft.jobs.base import Job
from regraft.jobs.condense.job import CondenseJob
from regraft.jobs.merge.job import MergeArm, MergeJob
from regraft.jobs.train import TrainJob
from regraft.recipes.recipe import Recipe, Scale, assemble

from .claims import read

_SAME = "/same-data"
_SMALL_SETS = ("condensed", "random", "herding")
_METRICS = (("test_accuracy", "%"), ("path_accuracy", "%"), ("accuracy_barrier", "points"))


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    scales = {
        "smoke": Scale(_smoke, 3),
        # ResNets differ most from pair to pair, and cost little; their number was raised after a look at
        # three, so that those that are reported are others.
        "cpu": Scale(_cpu, _seeds, first=lambda job: 21 if job.setting.endswith(_SAME) else 1),
        "gpu": Scale(_gpu, 3),
        "paper": Scale(_paper, 3),
    }
    title = "Merging networks of different data sets"
    package = __package__ or ""
    return assemble(package, scales, scale, seeds, title=title, read=read, metrics=_METRICS)


def _seeds(job: Job) -> int:
    return 8 if job.setting.endswith(_SAME) else 3 if "/rotated=" in job.setting else 6


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two data sets with one architecture, and the settings of all that is done with them."""

    setting: str
    a: DataConfig
    b: DataConfig
    model: ModelConfig
    train: OptimConfig
    runtime: RuntimeConfig
    merge: MergeArm = field(default_factory=MergeArm)
    condense: CondenseConfig = field(default_factory=CondenseConfig)
    condense_model: ModelConfig = field(default_factory=ModelConfig)

    def parent(self, data: DataConfig) -> TrainJob:
        """Return the training of a network on one of the sets."""
        return TrainJob(
            setting=f"parents/{_name(data)}/{_architecture(self.model)}",
            arm="dense",
            data=data,
            model=self.model,
            ticket=TicketConfig(method="dense"),
            optim=self.train,
            runtime=self.runtime,
        )

    def condensed(self) -> tuple[CondenseJob, ...]:
        """Return the condensation of each set."""
        return tuple(
            CondenseJob(
                setting=f"surrogates/{_name(data)}",
                data=data,
                model=self.condense_model,
                per_class=self.merge.per_class,
                condense=self.condense,
                runtime=self.runtime,
            )
            for data in dict.fromkeys((self.a, self.b))
        )

    def job(self, arm: str, control: str | None = "weight_matching", **options: Any) -> MergeJob:
        """Return one arm; `options` are those of `MergeArm`."""
        needed = self.condensed() if options.get("surrogate") == "condensed" else ()
        return MergeJob(
            setting=self.setting,
            arm=arm,
            control=control,
            a=self.parent(self.a),
            b=self.parent(self.b),
            merge=replace(self.merge, **options),
            condensed=needed,
            runtime=self.runtime,
        )

    def without_data(self) -> list[MergeJob]:
        """Return weight matching, the plain average, and the controls that need no training."""
        return [
            self.job("weight_matching", None, method="weights"),
            self.job("average", method="average"),
            self.job("parent_a", method="parent_a"),
            self.job("parent_b", method="parent_b"),
            self.job("ensemble", method="ensemble"),
        ]

    def with_all_data(self, optim: OptimConfig) -> list[MergeJob]:
        """Return straight-through matching on the union, and matching by its activations."""
        full = {"method": "straight_through", "surrogate": "full", "optim": optim}
        return [self.job("ste_full", **full), self.job("activation_matching", method="activations")]

    def with_few_images(
        self, optim: OptimConfig, scratch: OptimConfig, kinds: Iterable[str] = _SMALL_SETS
    ) -> list[MergeJob]:
        """Return straight-through matching on small sets, and training from scratch on them."""
        jobs = []
        for kind in kinds:
            few = {"surrogate": kind}
            jobs += [
                self.job(f"ste_{kind}", method="straight_through", optim=optim, **few),
                self.job(f"scratch_{kind}", method="scratch", optim=scratch, **few),
            ]
        return jobs

    def repaired(self, optim: OptimConfig) -> list[MergeJob]:
        """Return the merges that need no small set with REPAIR, which takes images without labels."""
        full: dict[str, Any] = {"surrogate": "full", "optim": optim}
        return [
            self.job("average_repair", "average", method="average", repair="repair"),
            self.job("weight_matching_repair", method="weights", repair="repair"),
            self.job(
                "ste_full_repair", "ste_full", method="straight_through", repair="repair", **full
            ),
        ]

    def with_repairs(self) -> list[MergeJob]:
        """Return networks with BatchNorm unaligned and aligned, their statistics put right or not."""
        jobs = []
        for mode in ("none", "reset", "repair"):
            end = "" if mode == "none" else f"_{mode}"
            plain = f"average{end}"
            jobs += [
                self.job(plain, None, method="average", repair=mode),
                self.job(f"weight_matching{end}", plain, method="weights", repair=mode),
                self.job(f"activation_matching{end}", plain, method="activations", repair=mode),
            ]
        return [*jobs, self.job("ensemble", "average", method="ensemble")]


def _name(data: DataConfig) -> str:
    parts = [data.name]
    if data.only_classes:
        parts.append(f"classes={data.only_classes[0]}-{data.only_classes[-1]}")
    if data.rotate:
        parts.append(f"rotated={data.rotate:g}")
    return "/".join(parts)


def _architecture(model: ModelConfig) -> str:
    return model.name if model.width == 1 else f"{model.name}/width={model.width:g}"


def turned(pair: Pair, angles: Iterable[float]) -> dict[float, Pair]:
    """Return the first set of a pair with itself turned, by angle."""
    return {
        angle: replace(
            pair,
            setting=f"{pair.a.name}/{_architecture(pair.model)}/rotated={angle:g}",
            b=replace(pair.a, rotate=angle),
        )
        for angle in angles
    }


def _smoke() -> list[Job]:
    runtime = RuntimeConfig(accelerator="cpu", threads=1, eval_every=5)
    data = DataConfig(name="digits", normalize="none")
    pair = Pair(
        setting="digits+rotated=90/mlp",
        a=data,
        b=replace(data, rotate=90.0),
        model=ModelConfig(name="mlp", options={"widths": [64, 64]}),
        train=OptimConfig(lr=0.1, weight_decay=0.0, epochs=30, batch_size=100, schedule="constant"),
        runtime=runtime,
        condense=CondenseConfig(restarts=10, outer=5, inner=10),
        condense_model=ModelConfig(name="mlp", options={"widths": [64, 64]}),
    )
    full = OptimConfig(lr=0.1, epochs=10, batch_size=100, schedule="constant")
    few = OptimConfig(lr=0.5, epochs=100, batch_size=500, schedule="multistep")
    scratch = OptimConfig(lr=0.1, epochs=100, batch_size=500, schedule="constant")
    jobs: list[Job] = [*pair.without_data(), *pair.with_all_data(full)]
    jobs += pair.with_few_images(few, scratch)
    for at in turned(pair, (0.0, 45.0)).values():
        jobs += [*at.without_data()[:2], *at.with_all_data(full)[:1]]
    same = Pair(
        setting="digits/resnet8/width=0.5/same-data",
        a=data,
        b=data,
        model=ModelConfig(name="resnet8", width=0.5),
        train=OptimConfig(lr=0.1, epochs=4, batch_size=100),
        runtime=runtime,
        merge=MergeArm(points=5, statistics=500),
    )
    return [*jobs, *same.with_repairs()]


# PyTorch's own initialisation, as the paper's networks have: weights of 2.4 times the size, as
# networks start from here elsewhere, hide what was learnt, and cost the average 12 points.
MLP = ModelConfig(name="mlp", options={"widths": [512, 512, 512], "init": "torch"})
NARROW = ModelConfig(name="mlp", options={"widths": [128, 128]})
MNIST = DataConfig(name="mnist", normalize="none")
FASHION = DataConfig(name="fashion_mnist", normalize="none")
SMALL_MNIST = DataConfig(name="mnist", image_size=14, train_size=6000, normalize="none")
TRAIN = OptimConfig(lr=0.1, weight_decay=0.0, epochs=10, batch_size=500, schedule="constant")
# Chosen on validation by benchmarks/choose_merging.py: see notes.md.
FULL = OptimConfig(lr=0.3, epochs=3, batch_size=500, schedule="constant")
FEW = OptimConfig(lr=0.5, epochs=300, batch_size=500, schedule="multistep")
SCRATCH = OptimConfig(lr=0.03, epochs=200, batch_size=500, schedule="constant")


def mlp_pair() -> Pair:
    """Return MNIST with Fashion-MNIST as the scale `cpu` has it."""
    return Pair(
        setting="mnist+fashion_mnist/mlp",
        a=MNIST,
        b=FASHION,
        model=MLP,
        train=TRAIN,
        runtime=RuntimeConfig(accelerator="cpu", threads=1),
        merge=MergeArm(sweeps=1, path_images=2000),
        condense=CondenseConfig(restarts=10, init="real"),
        condense_model=NARROW,
    )


def resnet_pair() -> Pair:
    """Return two ResNets on the same images as the scale `cpu` has them."""
    return Pair(
        setting="mnist/resnet8/width=2/same-data",
        a=SMALL_MNIST,
        b=SMALL_MNIST,
        model=ModelConfig(name="resnet8", width=2),
        train=OptimConfig(lr=0.1, weight_decay=5e-4, epochs=6, batch_size=100, schedule="cosine"),
        runtime=RuntimeConfig(accelerator="cpu", threads=1),
        merge=MergeArm(points=11, path_images=1000, statistics=500),
    )


def _cpu() -> list[Job]:
    pair = mlp_pair()
    jobs: list[Job] = [*pair.with_few_images(FEW, SCRATCH), *pair.with_all_data(FULL)]
    jobs += [*pair.without_data(), *pair.repaired(FULL)]
    brief = replace(pair, merge=replace(pair.merge, path_images=500))  # these paths are not drawn
    for at in turned(brief, (0.0, 45.0, 90.0)).values():
        jobs += [*at.without_data()[:2], *at.with_all_data(FULL)[:1]]
    return [*jobs, *resnet_pair().with_repairs()]


def _gpu() -> list[Job]:
    runtime = RuntimeConfig(accelerator="cuda", threads=4, eval_every=10)
    data = DataConfig(name="cifar10_jpeg", normalize="imagenet", augment="crop-flip")
    return _class_split(data, runtime, epochs=40, ste=20, few=200)


def _paper() -> list[Job]:
    """Return the published settings (card B3), with the test images alone held back."""
    runtime = RuntimeConfig(threads=4, eval_every=10)
    mnist = replace(MNIST, validation=0.0)
    sgd = OptimConfig(lr=0.05, epochs=100, batch_size=500, schedule="constant")
    pair = replace(
        mlp_pair(),
        a=mnist,
        b=replace(FASHION, validation=0.0),
        train=replace(TRAIN, epochs=100),
        runtime=runtime,
        merge=MergeArm(statistics=60000),  # and matchings that go to their end
        condense=CondenseConfig(restarts=1000),  # and from noise, as published
    )
    few = replace(sgd, lr=0.5, epochs=5000, schedule="multistep")
    scratch = replace(TRAIN, epochs=200)
    jobs: list[Job] = [*pair.with_few_images(few, scratch), *pair.with_all_data(sgd)]
    jobs += pair.without_data()
    few = replace(sgd, lr=0.1, epochs=1000, schedule="multistep")
    for at in turned(pair, (0.0, 15.0, 30.0, 45.0, 60.0, 75.0, 90.0)).values():
        jobs += [*at.without_data(), *at.with_all_data(replace(sgd, lr=0.1, epochs=5))]
        jobs += at.with_few_images(few, scratch, ("condensed",))
    cifar = DataConfig(name="cifar10", normalize="imagenet", augment="crop-flip", validation=0.0)
    return [*jobs, *_class_split(cifar, runtime, epochs=100, ste=100, few=1000)]


def _class_split(
    data: DataConfig, runtime: RuntimeConfig, *, epochs: int, ste: int, few: int
) -> list[Job]:
    """Return classes 0-4 with classes 5-9: ResNet-20 of 16 times the width, heads of ten classes."""
    pair = Pair(
        setting=f"{data.name}/resnet20/width=16/classes=0-4+5-9",
        a=replace(data, only_classes=(0, 1, 2, 3, 4)),
        b=replace(data, only_classes=(5, 6, 7, 8, 9)),
        model=ModelConfig(name="resnet20", width=16),
        train=OptimConfig(
            lr=0.4,
            weight_decay=5e-4,
            epochs=epochs,
            batch_size=500,
            schedule="linear",
            warmup_epochs=5,
        ),
        runtime=replace(runtime, precision="bf16-mixed"),
        merge=MergeArm(repair="reset", statistics=25000, per_class=50),
    )
    full = OptimConfig(lr=1.0, epochs=ste, batch_size=250, schedule="cosine", warmup_epochs=1)
    small = OptimConfig(lr=0.1, epochs=few, batch_size=100, schedule="cosine")
    scratch = OptimConfig(lr=0.1, weight_decay=5e-4, epochs=600, batch_size=100, schedule="cosine")
    jobs: list[Job] = [*pair.without_data(), *pair.with_all_data(full)]
    return [*jobs, *pair.with_few_images(small, scratch, ("random", "herding"))]
