"""Merging networks of different data sets, with and without data; numbers in `scales.toml`.

References:
    Yamada et al., "Revisiting permutation symmetry for merging models between different datasets",
    arXiv 2306.05641 (v2: "Toward data efficient model merging between different datasets without
    performance degradation", ACML 2024).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig, TicketConfig
from regraft.errors import InputError
from regraft.generators import CondenseConfig
from regraft.jobs.condense.job import CondenseJob
from regraft.jobs.merge.job import MergeArm, MergeJob
from regraft.jobs.train import TrainJob
from regraft.recipes.notes import read_rows
from regraft.recipes.recipe import Recipe, Scale, assemble

from .claims import read

_METRICS = (("test_accuracy", "%"), ("path_accuracy", "%"), ("accuracy_barrier", "points"))


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    title = "Merging networks of different data sets"
    package, groups = __package__ or "", _groups(scale)
    return assemble(package, groups, scale, seeds, title=title, read=read, metrics=_METRICS)


def _groups(scale: str) -> list[Scale]:
    return [Scale(pair.jobs, pair.seeds, pair.first) for pair in pairs(scale).values()]


def pairs(scale: str) -> dict[str, Pair]:
    """Return the rows of a scale in `scales.toml` by their settings."""
    rows = read_rows(__package__ or "", "scales.toml", scale, Pair)
    return {pair.setting: pair for pair in rows}


@dataclass(frozen=True, kw_only=True)
class FewImages:
    """What is done with a few images of each class.

    Attributes:
        sets: How they are chosen.
        matching: SGD of straight-through matching on them.
        scratch: Training from scratch on them.
    """

    sets: tuple[str, ...]
    matching: OptimConfig
    scratch: OptimConfig


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two data sets with one architecture, and the settings of all that is done with them.

    Attributes:
        setting: What is compared; with `angles` the angle follows.
        seeds: Pairs of networks.
        first: Seed of the first of them.
        angles: Turn the second set by each of these, for a pair each.
        train: The training of both networks.
        merge: What all arms share.
        arms: Groups of arms, by their methods: without_data, with_all_data, with_few_images, repaired
            and with_repairs.
        only: Arms that are kept; all without any.
        all_data: SGD of straight-through matching on all data.
        few_images: What is done with a few images.
        condense: Of the condensed images: how they are made.
        condense_model: By which network.
    """

    setting: str
    seeds: int
    first: int = 1
    a: DataConfig
    b: DataConfig
    angles: tuple[float, ...] = ()
    model: ModelConfig
    train: OptimConfig
    runtime: RuntimeConfig
    merge: MergeArm = field(default_factory=MergeArm)
    arms: tuple[str, ...]
    only: tuple[str, ...] = ()
    all_data: OptimConfig | None = None
    few_images: FewImages | None = None
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

    def jobs(self) -> list[MergeJob]:
        """Return the arms of every group, at every angle.

        Raises:
            InputError: A group is unknown, or its settings are missing.
        """
        pairs = self.turned() if self.angles else [self]
        jobs = [job for pair in pairs for group in self.arms for job in pair._group(group)]
        return [job for job in jobs if not self.only or job.arm in self.only]

    def _group(self, name: str) -> list[MergeJob]:
        match name:
            case "without_data":
                return self.without_data()
            case "with_repairs":
                return self.with_repairs()
            case "with_all_data" if self.all_data:
                return self.with_all_data(self.all_data)
            case "repaired" if self.all_data:
                return self.repaired(self.all_data)
            case "with_few_images" if self.few_images:
                return self.with_few_images(self.few_images)
        raise InputError(
            f"regraft/recipes/merging/scales.toml: {self.setting}: arms {name!r} are unknown, or their key "
            "all_data or few_images is missing"
        )

    def turned(self) -> list[Pair]:
        """Return the pair at every angle of the second set."""
        return [
            replace(
                self,
                setting=f"{self.setting}/rotated={angle:g}",
                b=replace(self.b, rotate=angle),
            )
            for angle in self.angles
        ]

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

    def with_few_images(self, few: FewImages) -> list[MergeJob]:
        """Return straight-through matching on small sets, and training from scratch on them."""
        jobs = []
        for kind in few.sets:
            on = {"surrogate": kind}
            jobs += [
                self.job(f"ste_{kind}", method="straight_through", optim=few.matching, **on),
                self.job(f"scratch_{kind}", method="scratch", optim=few.scratch, **on),
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
