"""A target with few images, the network that is fine-tuned on it, and one such fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from regraft.checkpoints.model_card import header
from regraft.checkpoints.read import read_checkpoint
from regraft.config import DataConfig, FinetuneConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.data import Splits, per_class_subset, stratified_subset
from regraft.errors import InputError
from regraft.features import find_classifier
from regraft.jobs.base import to_json
from regraft.jobs.data import load_once
from regraft.jobs.train import TrainJob
from regraft.models import build
from regraft.train import RunFolder
from regraft.train.loop import Progress

from .engine import normalised, tuner
from .methods import needs_source_head
from .start import Start, start_from

Part = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class TunedTask:
    """What all arms of one setting share.

    Attributes:
        data: The target. Which images are held out for validation is the same for all seeds.
        model: The network.
        source: The training whose weights it starts from; None for random ones.
        pretrained: Start from the weights of timm's or torchvision's hub instead.
        shots: Training images of each class, drawn by the run's seed; None for `share`.
        share: Share of the training images, stratified, drawn by the run's seed.
        validation_images: How many of the held-out images judge a trial, stratified.
        test_images: How many of the test images give the final figure, stratified; None for all. Of a
            folder without a test part they are held-out images that judge no trial.
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

    def with_seed(self, seed: int) -> TunedTask:
        """Return the same task with the source network of a seed."""
        return replace(self, source=None if self.source is None else self.source.with_seed(seed))

    def from_scratch(self) -> TunedTask:
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
        held: Any = whole.validation
        test, split = whole.test, self.data.split_seed
        chosen = _some(held, self.validation_images, split)
        if test is None and held is not None:
            # The whole and its part share files or tensors: what is left is told by position.
            kept = set(_rows(held, self.validation_images, split).tolist())
            left = [i for i in range(len(held)) if i not in kept]
            test = held.subset(torch.tensor(left)) if left else None
        return replace(
            whole, train=train, validation=chosen, test=_some(test, self.test_images, split)
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
    return images.subset(_rows(images, size, seed))


def _rows(images: Any, size: int | None, seed: int) -> torch.Tensor:
    if size is None or size >= len(images):
        return torch.arange(len(images))
    dense = images.labels.unique(return_inverse=True)[1]  # numbered without gaps
    return stratified_subset(dense, size, seed)


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a network is fine-tuned: a method of `regraft.features`, learning rate and weight."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    lr: float = 0.01
    weight: float | None = None

    @property
    def finetune(self) -> FinetuneConfig:
        """The method as fine-tunings take it."""
        return FinetuneConfig(method=self.method, weight=self.weight, options=dict(self.options))


def tune(
    task: TunedTask,
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

    `part` are the images that give the figure: `validation` for a trial, `test` for a report. Features
    of validation images are described at `points` times along training.

    Raises:
        DivergenceError: A loss or a feature is not finite.
        InputError: There are no images of `part`, or the source is missing.
    """
    seed = runtime.seed
    splits = task.splits(seed)
    if getattr(splits, part) is None:
        raise InputError(f"data {task.data.name!r} has no {part} images")
    start = task.start(splits, root, seed=seed, want_source=needs_source_head(tuning.finetune))
    mean = std = None
    if task.mean_std is not None:
        mean, std = ((value,) * splits.channels for value in task.mean_std)
    splits, augment = normalised(splits, start, mean, std), task.data.augment
    one = tuner(start, splits, tuning.finetune, task.optim, runtime, fabric, augment=augment)
    # Only one part is looked at, unless training stops at its best validation figure.
    _, result = one.train(
        tuning.lr,
        tuning.weight,
        task.optim.epochs,
        folder,
        validate=part == "validation",
        test=part == "test",
        points=points,
        progress=progress,
    )
    result["metrics"] |= tuning_metrics(tuning)
    return result


def tuning_metrics(tuning: Tuning) -> dict[str, float]:
    """Return the numbers of a tuning that a selection may have chosen."""
    own = {name: tuning.options.get(name) for name in ("prior_lr", "prior_scale")}
    settings = {"lr": tuning.lr, "weight": tuning.weight, **own}
    return {name: value for name, value in settings.items() if value is not None}


def tuning_config(tuning: Tuning) -> dict[str, Any]:
    """Return the JSON form of a tuning."""
    return {**dataclasses.asdict(tuning), "options": dict(tuning.options)}
