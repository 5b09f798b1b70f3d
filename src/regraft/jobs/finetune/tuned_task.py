"""A target with few images, the network that is fine-tuned on it, and one such fine-tuning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from regraft.checkpoints.model_card import header
from regraft.checkpoints.read import read_checkpoint
from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.data import Splits, per_class_subset, stratified_subset
from regraft.errors import DivergenceError, InputError
from regraft.features import Method, Objective, find_classifier
from regraft.features import build as build_method
from regraft.jobs.base import to_json
from regraft.jobs.data import load_once, loaders
from regraft.jobs.train import TrainJob
from regraft.models import build
from regraft.train import Batches, RunFolder, fit
from regraft.train.loop import Progress

from .analysis import Recorder
from .start import Start, start_from

Part = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all arms of one setting share.

    Attributes:
        data: The target. Which images are held out for validation is the same for all seeds.
        model: The network.
        source: The training whose weights it starts from; None for random ones.
        pretrained: Start from the weights of timm's or torchvision's hub instead.
        shots: Training images of each class, drawn by the run's seed; None for `share`.
        share: Share of the training images, stratified, drawn by the run's seed.
        validation_images: How many of the held-out images judge a trial, stratified.
        test_images: How many of the test images give the final figure, stratified; None for all.
        optim: Optimiser and length; a run brings its own learning rate.
        mean_std: Mean and deviation that pixels are normalised by, those of the starting weights
            or of the training images where it is None.
    """

    data: DataConfig
    model: ModelConfig
    source: TrainJob | None = None
    pretrained: bool = False
    shots: int | None = None
    share: float = 1.0
    validation_images: int | None = 1000
    test_images: int | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    mean_std: tuple[float, float] | None = None

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines numbers."""
        config = {f.name: to_json(getattr(self, f.name)) for f in dataclasses.fields(self)}
        config["optim"].pop("lr")  # a run brings its own
        return config

    def with_seed(self, seed: int) -> Task:
        """Return the same task with the source network of a seed."""
        return replace(self, source=None if self.source is None else self.source.with_seed(seed))

    def from_scratch(self) -> Task:
        """Return the same task for a network that starts from random weights."""
        return replace(self, source=None, pretrained=False)

    def splits(self, seed: int) -> Splits:
        """Return the few training images of a seed, and the images that judge.

        Raises:
            InputError: The data are missing, or have fewer images than are asked for.
        """
        whole = load_once(self.data)
        if not isinstance(whole, Splits):
            raise InputError(f"data {self.data.name!r} is a graph: fine-tuning takes images")
        train: Any = whole.train
        if self.shots is not None:
            train = train.subset(per_class_subset(train.labels, self.shots, seed))
        elif self.share < 1.0:
            size = round(self.share * len(train))
            train = train.subset(stratified_subset(train.labels, size, seed))
        return replace(
            whole,
            train=train,
            validation=_some(whole.validation, self.validation_images, self.data.split_seed),
            test=_some(whole.test, self.test_images, self.data.split_seed),
        )

    def start(self, splits: Splits, root: Path, *, seed: int, want_source: bool) -> Start:
        """Return the network with a new classifier and the source's weights.

        Raises:
            InputError: The source's run is not finished, or its network is another one.
        """
        torch.manual_seed(seed)
        shape: dict[str, Any] = {"channels": splits.channels, "image_size": splits.image_size}
        if self.source is None and not self.pretrained:
            model = build(self.model, num_classes=splits.num_classes, **shape)
            example = torch.zeros(2, splits.channels, splits.image_size, splits.image_size)
            name, _ = find_classifier(model, example=example)
            return Start(model, name, None, (), None, None)
        checkpoint = None
        if self.source is not None:
            checkpoint = read_checkpoint(self.source.folder(root) / "model.safetensors")
            # A classifier over classes of the same names is still one of another task.
            checkpoint = replace(checkpoint, metadata=header({**checkpoint.about, "classes": []}))
        return start_from(
            self.model,
            classes=splits.classes,
            checkpoint=checkpoint,
            pretrained=self.pretrained,
            want_source=want_source,
            **shape,
        )


def _some(images: Any, size: int | None, seed: int) -> Any:
    if images is None or size is None or size >= len(images):
        return images
    return images.subset(stratified_subset(_dense(images.labels), size, seed))


def _dense(labels: torch.Tensor) -> torch.Tensor:
    """Return labels numbered without gaps, as stratifying wants them."""
    return labels.unique(return_inverse=True)[1]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a network is fine-tuned: a method of `regraft.features`, learning rate and weight."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 0.01
    weight: float | None = None

    def build(self, seed: int, source: nn.Module | None) -> Method:
        """Return the method."""
        options: dict[str, Any] = {"seed": seed, **self.options}
        if self.weight is not None:
            options["weight"] = self.weight
        if self.method == "co_tuning":
            options["source_head"] = source
        return build_method(self.method, **options)


def tune(
    task: Task,
    tuning: Tuning,
    *,
    runtime: RuntimeConfig,
    root: Path,
    folder: RunFolder,
    fabric: Any,
    part: Part,
    points: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fine-tune once in an open folder and return the result, without writing it as the folder's.

    Args:
        task: Data and network.
        tuning: Method, learning rate, weight.
        runtime: Seed and where to compute.
        root: Folder of the recipe's runs.
        folder: An open run folder.
        fabric: A launched Fabric.
        part: The images that give the figure: `validation` for a trial, `test` for a report.
        points: Times that the features of held-out images are described along training.
        progress: Called after every step.

    Raises:
        DivergenceError: A loss or a feature is not finite.
        InputError: There are no images of `part`, or the source is missing.
    """
    seed = runtime.seed
    splits = task.splits(seed)
    if getattr(splits, part) is None:
        raise InputError(f"data {task.data.name!r} has no {part} images")
    start = task.start(splits, root, seed=seed, want_source=tuning.method == "co_tuning")
    if task.mean_std is not None:
        mean, std = ((value,) * splits.channels for value in task.mean_std)
        splits = replace(splits, mean=mean, std=std)
    elif start.mean is not None and start.std is not None:
        splits = replace(splits, mean=start.mean, std=start.std)
    optim = replace(task.optim, lr=tuning.lr)
    all_batches = loaders(splits, task.data, optim, seed=runtime.seed, device=fabric.device)
    # Only one part is looked at, unless training stops at its best validation figure; and only at
    # the end: epochs are a step or two here.
    validates = part == "validation" or optim.select == "best"
    if optim.select == "last":
        runtime = replace(runtime, eval_every=optim.epochs)
    batches = Batches(
        all_batches.train,
        all_batches.validation if validates else None,
        all_batches.test if part == "test" else None,
    )
    model = start.model.to(fabric.device)
    method: Any = tuning.build(seed, start.source)
    steps = len(batches.train) * optim.epochs
    method.prepare(model, batches.train, steps=steps, classifier=start.classifier)
    method.to(fabric.device)
    recorder = None
    if points and all_batches.validation is not None:
        recorder = Recorder(model, method, all_batches.validation, folder, points, progress)
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        result = fit(
            model,
            batches,
            optim=optim,
            runtime=runtime,
            folder=folder,
            fabric=fabric,
            loss=Objective(method, nn.CrossEntropyLoss(label_smoothing=optim.label_smoothing)),
            steppers={"method": method},
            groups=[{"params": trained}, *method.param_groups(tuning.lr)],
            progress=recorder or progress,
        )
    except torch.linalg.LinAlgError as error:
        # A decomposition (BSS, DR-Tune) meets the NaN before the loss is read.
        raise DivergenceError(
            f"the features are no longer finite in {folder.path} ({error}): lower the learning rate "
            f"(now {tuning.lr:g})"
        ) from error
    if recorder is not None:
        result["metrics"] |= recorder.described()
    # The last step's damage shows in no training loss.
    if not all(math.isfinite(value) for value in result["metrics"].values()):
        raise DivergenceError(
            f"the trained network's figures are not finite in {folder.path}: lower the learning rate "
            f"(now {tuning.lr:g})"
        )
    result["metrics"] |= tuning_metrics(tuning)
    method.remove()
    return result


def tuning_metrics(tuning: Tuning) -> dict[str, float]:
    """Return the numbers of a tuning that a selection may have chosen."""
    found = {"lr": tuning.lr, "weight": tuning.weight, "prior_lr": tuning.options.get("prior_lr")}
    return {name: value for name, value in found.items() if value is not None}


def tuning_config(tuning: Tuning) -> dict[str, Any]:
    """Return the JSON form of a tuning."""
    return {**dataclasses.asdict(tuning), "options": dict(tuning.options)}
