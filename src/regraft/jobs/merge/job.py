"""One run that merges two trained networks, or does what a merge is held against, and measures it.

References:
    Yamada et al., "Revisiting permutation symmetry for merging models between different datasets",
    arXiv 2306.05641.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from regraft.config import DataConfig, OptimConfig
from regraft.data import Splits
from regraft.data.memory import in_memory
from regraft.errors import InputError
from regraft.jobs.base import Job, to_json
from regraft.jobs.condense.job import CondenseJob
from regraft.jobs.data import fingerprint, load_once
from regraft.jobs.train import TrainJob
from regraft.models import build
from regraft.symmetry.merge.connectivity import Curve, measure
from regraft.symmetry.merge.heads import Ensemble
from regraft.symmetry.merge.repair import RepairMode
from regraft.tickets import stored_bytes
from regraft.train import Batches, RunFolder, fit, make_fabric, peak_bytes, reset_peak
from regraft.train.loop import Progress

from .config import MergeConfig, StraightThroughSettings, Surrogate
from .merge import merge
from .models import Models, read_models
from .scores import Scores
from .surrogate import surrogate

Method = Literal[
    "parent_a",
    "parent_b",
    "average",
    "weights",
    "activations",
    "straight_through",
    "ensemble",
    "scratch",
]

_OTHER = 1000
"""Added to a seed for network B, which must not start where A does."""


@dataclass(frozen=True, kw_only=True)
class MergeArm:
    """What is done with two trained networks.

    `average` merges them as they are; `weights`, `activations` and `straight_through` align B first
    by weight matching, by activations or on labelled data. Controls are either parent by itself,
    the `ensemble` of their logits, and a network trained from `scratch` on the surrogate.
    """

    method: Method = "average"
    surrogate: Surrogate = "full"
    """Data of `straight_through` and `scratch`: the union of the training sets, or a few images."""
    per_class: int = 10
    """Images of each class and set in a surrogate that is not full."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """SGD of `straight_through` or `scratch`."""
    sweeps: int = 100
    """Sweeps of each matching of `straight_through`, at most; the next goes on from where it ended."""
    repair: RepairMode = "none"
    """What is done to the statistics of merged networks."""
    statistics: int = 5000
    """Training images of each set that statistics and activations come from; labels are not used."""
    points: int = 25
    """Networks measured along the path."""
    path_images: int | None = None
    """Test images of each set that the path is measured on; all by default."""


@dataclass(frozen=True, kw_only=True)
class MergeJob(Job):
    """Everything that determines one merge.

    Attributes:
        setting: What is compared here.
        arm: The method's name in tables.
        control: The arm this one is held against.
        a: The training of the network that stays.
        b: The training of the network that is permuted, with another seed.
        merge: What is done.
        condensed: Of the surrogate `condensed`, the condensation of each data set.
    """

    a: TrainJob
    b: TrainJob
    merge: MergeArm = field(default_factory=MergeArm)
    condensed: tuple[CondenseJob, ...] = ()

    def with_seed(self, seed: int) -> MergeJob:
        """Return the same merge at another seed; B gets one that no other network A has."""
        return replace(super().with_seed(seed), b=self.b.with_seed(seed + _OTHER))

    def check(self) -> None:
        """See `Job.check`."""
        super().check()
        if self.a.model != self.b.model:
            raise InputError(
                f"a is a {self.a.model.name} and b a {self.b.model.name}, or of other options: "
                "networks are merged if their architecture is the same"
            )

    @property
    def data(self) -> tuple[DataConfig, ...]:
        """The data sets: of both parents, or one where it is the same."""
        same = to_json(self.a.data) == to_json(self.b.data)
        return (self.a.data,) if same else (self.a.data, self.b.data)

    def merging(self, root: Path) -> MergeConfig:
        """Return what the engine is told, as `regraft merge` would tell it of the parents' files.

        Raises:
            InputError: A parent is not trained yet.
        """
        arm = self.merge
        matches: dict[str, Any] = {"weights": "weights", "activations": "activations"}
        matches["straight_through"] = "ste"
        return MergeConfig(
            checkpoints=tuple(trained_file(job, root) for job in (self.a, self.b)),
            match=matches.get(arm.method, "none"),
            data=self.data,
            ste=StraightThroughSettings(
                surrogate=arm.surrogate,
                per_class=arm.per_class,
                condensed=tuple(job.file(root) for job in self.condensed),
                steps=None,
                sweeps=arm.sweeps,
                optim=arm.optim,
            ),
            statistics_images=arm.statistics,
            batch_size=arm.optim.batch_size,
            repair=arm.repair,
            points=arm.points,
            curve_images=arm.path_images,
            controls=False,
            runtime=self.runtime,
        )

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Merge and measure; see `Job.work`."""
        fabric = make_fabric(self.runtime)
        splits = load_all(self.data)
        for i, own in enumerate(splits, start=1):
            folder.pin(f"data{i}", fingerprint(own))
        return _Merging(self, splits, folder, fabric, root, progress).result()


@dataclass(eq=False)
class _Merging:
    """A run under way."""

    job: MergeJob
    splits: list[Splits]
    folder: RunFolder
    fabric: Any
    root: Path
    progress: Progress | None
    seconds: float = 0.0
    images: int = 0

    def result(self) -> dict[str, Any]:
        """Do what the arm is for and return what was measured."""
        reset_peak()
        method = self.job.merge.method
        if method not in ("straight_through", "scratch"):  # which say themselves
            self.folder.truncate_metrics(0)
        config = self.job.merging(self.root)
        path: dict[str, float] = {}
        if method in ("average", "weights", "activations", "straight_through"):
            merged = merge(config, self.folder, progress=self._told, splits=self.splits)
            models, network = merged.models, merged.models.model
            network.load_state_dict(merged.state)
            if method != "average":
                self.seconds = merged.aligned.record["models"][1]["seconds"]
            if method == "straight_through":
                used = merged.aligned.record["models"][1]["images"]
                self.images = sum(part["images"] for part in used)
            path = self._path(merged.curves["1-2"])
        else:
            models = read_models(config, splits=self.splits)
            network = self._control(config, models)
        metrics = {**self._scores(models, network), **path}
        if method in ("straight_through", "scratch"):
            metrics["surrogate_images"] = self.images
        return {
            "metrics": metrics,
            "seconds": round(self.seconds, 3),
            "trainable_parameters": (
                sum(p.numel() for p in network.parameters()) if method == "scratch" else 0
            ),
            "stored_bytes": stored_bytes(network),
            "peak_memory_bytes": peak_bytes(),
        }

    def _told(self, step: int, steps: int, row: dict[str, float]) -> None:
        if self.progress is not None:
            self.progress(step, steps, row)

    def _path(self, curves: dict[str, Curve]) -> dict[str, float]:
        """Log the networks between A and aligned B, and return what sums them up."""
        (curve,) = curves.values()
        for i, (at, score) in enumerate(zip(curve.at, curve.scores, strict=True)):
            row = {"step": i, "epoch": 0, "split": "path", "at": at}
            row |= {"loss": score.loss, "accuracy": score.accuracy}
            self.folder.log({**row, **_by_set("accuracy", score.accuracies)})
        accuracies = [score.accuracy for score in curve.scores]
        return {
            "path_accuracy": sum(accuracies) / len(accuracies),
            "loss_barrier": curve.loss_barrier,
            "accuracy_barrier": curve.accuracy_barrier,
        }

    def _control(self, config: MergeConfig, models: Models) -> nn.Module:
        method = self.job.merge.method
        if method == "scratch":
            return self._scratch(config, models)
        if method == "ensemble":
            return Ensemble.of(models.model, models.states)
        models.model.load_state_dict(models.states[0 if method == "parent_a" else 1])
        return models.model

    def _scratch(self, config: MergeConfig, models: Models) -> nn.Module:
        torch.manual_seed(self.job.runtime.seed)
        shape: Any = models.shape
        network = build(self.job.a.model, **shape).to(models.device)
        batches, used = surrogate(config, models, self.folder.path)
        self.images = sum(part["images"] for part in used)
        fitted = fit(
            network,
            Batches(batches),
            optim=self.job.merge.optim,
            runtime=self.job.runtime,
            folder=self.folder,
            progress=self.progress,
            fabric=self.fabric,
        )
        self.seconds = fitted["seconds"]
        return network.eval()

    def _scores(self, models: Models, network: nn.Module) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for split in ("validation", "test"):
            if split == "test" or all(own.validation is not None for own in self.splits):
                scores = Scores(models, limit=None, seed=self.job.runtime.seed, split=split)
                score = measure(network, scores.sources)
                metrics[f"{split}_accuracy"] = score.accuracy
                metrics[f"{split}_loss"] = score.loss
                metrics |= _by_set(f"{split}_accuracy", score.accuracies)
        return metrics


def load_all(configs: Sequence[DataConfig]) -> list[Splits]:
    """Load the data sets that two networks were trained on.

    Raises:
        InputError: Images that stay in their files, none to test on, or sets that are normalised in
            two ways or have images of two forms: a merged network has one input.
    """
    splits: list[Splits] = []
    for config in configs:
        own = load_once(config)
        if not isinstance(own, Splits):
            raise InputError(f"data {config.name!r} is a graph: merging needs images")
        in_memory(own.train, f"data {config.name!r}: merging")
        if own.test is None:
            raise InputError(f"data {config.name!r} has no test images to measure on")
        splits.append(own)
    first = splits[0]
    for other in splits[1:]:
        for what in ("mean", "std", "channels", "image_size", "num_classes"):
            one, two = getattr(first, what), getattr(other, what)
            if one != two:
                raise InputError(
                    f"{what} of {first.name} is {one} and of {other.name} {two}: a merged network has "
                    "one input and one head; give both normalize='none' and one image_size"
                )
    return splits


def trained_file(job: TrainJob, root: Path) -> Path:
    """Return the model file of a finished job.

    Raises:
        InputError: The job is not finished.
    """
    path = job.folder(root) / "model.safetensors"
    if not (job.folder(root) / "result.json").exists() or not path.exists():
        raise InputError(
            f"{path} is missing: a merge needs its trained parents, run them first (the recipe does)"
        )
    return path


def _by_set(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the values of each data set by name; of a single one there is nothing to add."""
    return {f"{name}_{c}": v for c, v in zip("ab", values, strict=False)} if len(values) > 1 else {}
