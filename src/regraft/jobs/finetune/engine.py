"""One fine-tuning of a network by a method: what verb and recipe run, to choose and for the result."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from regraft.config import Augmentation, DataConfig, FinetuneConfig, OptimConfig, RuntimeConfig
from regraft.config.finetune import Metric
from regraft.data import Mixup, Splits
from regraft.errors import DivergenceError, InputError
from regraft.features import Method, Objective, freeze_batchnorm_
from regraft.jobs.data import loaders
from regraft.models.copying import copy_module
from regraft.protocols import BatchSource
from regraft.train import Average, Batches, RunFolder, fit, layerwise_groups, outputs
from regraft.train.fabric import cast
from regraft.train.loop import Progress

from .analysis import Recorder, means_of, moved
from .extra import Extras, ExtraTerm, TermContext, memory_told
from .methods import make_method
from .settings import Setting
from .start import Start

_PROBED_STEPS = 4
_PROBED_SECONDS = 3.0


@dataclass(frozen=True, eq=False)
class Tuner:
    """Everything that trainings from one start on one target share.

    Attributes:
        start: The network that each training copies.
        splits: The target.
        once: Batches of every training image, each once: what a method takes its references from.
        batches: Training batches as they are; for validation, and for the final figure.
        mixed: The training batches that are trained on, where that are others.
        finetune: Method and what goes with it.
        optim: Optimiser and length; a training brings its learning rate.
        runtime: Seed, and where to compute.
        fabric: A launched Fabric.
        augment: Augmentation of the training images.
        metric: What the state is kept by, where the best one is.
        extras: What makes the further losses.
    """

    start: Start
    splits: Splits
    once: BatchSource
    batches: Batches
    mixed: BatchSource | None
    finetune: FinetuneConfig
    optim: OptimConfig
    runtime: RuntimeConfig
    fabric: Any
    augment: Augmentation = "none"
    metric: Metric = "accuracy"
    extras: tuple[ExtraTerm, ...] = ()

    def using(self, setting: Setting) -> Tuner:
        """Return the same with the method of a setting."""
        if setting.method == self.finetune.method:
            return self
        return replace(self, finetune=replace(self.finetune, method=setting.method))

    def on(self, splits: Splits) -> Tuner:
        """Return the same on other images of the target, of which the last state is kept."""
        optim, more = replace(self.optim, select="last"), {"metric": self.metric}
        where = (optim, self.runtime, self.fabric)
        one = tuner(self.start, splits, self.finetune, *where, augment=self.augment, **more)
        return replace(one, extras=self.extras)

    def ordered(self) -> BatchSource:
        """Return the training images in their order, without augmentation."""
        splits = replace(self.splits, validation=self.splits.train, test=None)
        batches = loaders(splits, DataConfig(), self.optim, seed=0, device=self.fabric.device)
        return batches.validation or batches.train

    def train(
        self,
        lr: float,
        weight: float | None,
        epochs: int,
        folder: RunFolder,
        *,
        validate: bool = True,
        test: bool = False,
        points: int = 0,
        progress: Progress | None = None,
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Train a copy of the network and return it with the result; see `regraft.train.fit`.

        Args:
            lr: Learning rate.
            weight: The method's weight; None for its own.
            epochs: Length.
            folder: An open run folder.
            validate: Measure on the validation images; it always is where the best state is kept.
            test: Measure on the test images.
            points: Times that the features of validation images are described along training.
            progress: Called after every step.

        Raises:
            DivergenceError: A loss, a feature or a figure is not finite.
        """
        optim, runtime = replace(self.optim, lr=lr, epochs=epochs), self.runtime
        if optim.select == "last":  # looked at once, at the end: epochs may be a step or two
            runtime = replace(runtime, eval_every=epochs)
        validates = validate or optim.select == "best"
        batches = Batches(
            self.mixed or self.batches.train,
            self.batches.validation if validates else None,
            self.batches.test if test else None,
        )
        model, method, extras = self._prepared(weight, epochs)
        decay = self.finetune.ema
        recorder = None
        if points and self.batches.validation is not None:
            recorder = Recorder(model, method, self.batches.validation, folder, points, progress)
        begun = means_of(method)
        steppers: dict[str, Any] = {"method": method}
        if extras is not None:
            steppers["extras"] = extras
        base = nn.CrossEntropyLoss(self._class_weights(), label_smoothing=optim.label_smoothing)
        try:
            with memory_told(extras):
                result = fit(
                    model,
                    batches,
                    optim=optim,
                    runtime=runtime,
                    folder=folder,
                    fabric=self.fabric,
                    loss=Objective(method, base),
                    penalty=extras,
                    steppers=steppers,
                    groups=self.groups(model, method, lr),
                    balanced=self.metric == "balanced_accuracy",
                    average=None if decay is None else Average(model, decay=decay),
                    progress=recorder or progress,
                )
        except torch.linalg.LinAlgError as error:
            # A decomposition (BSS, DR-Tune) meets the NaN before the loss is read.
            raise DivergenceError(
                f"the features are no longer finite in {folder.path} ({error}): lower the learning rate "
                f"(now {lr:g})"
            ) from error
        if recorder is not None:
            result["metrics"] |= recorder.described()
        result["metrics"] |= moved(method, begun)
        if extras is not None and (summed := extras.summaries()):
            result["extras"] = summed
        # The last step's damage shows in no training loss.
        if not all(math.isfinite(value) for value in result["metrics"].values()):
            raise DivergenceError(
                f"the trained network's figures are not finite in {folder.path}: lower the learning rate "
                f"(now {lr:g})"
            )
        method.remove()
        return model, result

    def groups(self, model: nn.Module, method: Method, lr: float) -> list[dict[str, Any]]:
        """Return the optimiser's groups: the network's by layer, then the method's own."""
        head = self.finetune.head_factor
        name, decay = self.start.classifier, self.finetune.layer_decay
        own = layerwise_groups(model, name, lr=lr, decay=decay, head_factor=head)
        return [*own, *method.param_groups(lr * head)]

    def _class_weights(self) -> torch.Tensor | None:
        """Return a weight for each class, over its images, that averages to 1 over all images."""
        if not self.finetune.class_weights:
            return None
        labels = self.splits.train.labels
        counts = torch.bincount(labels, minlength=self.splits.num_classes)
        weights = len(labels) / (counts.clamp(min=1) * (counts > 0).sum())
        return weights.to(self.fabric.device, next(self.start.model.parameters()).dtype)

    def measure(self) -> tuple[float, float]:
        """Return about how many seconds an epoch takes with its validation, and a start before it.

        A copy of the network takes a few steps and one pass over the validation images.
        """
        began = time.monotonic()
        model, method, extras = self._prepared(None, self.optim.epochs)
        before = time.monotonic() - began
        objective = Objective(method).train()
        optimizer = torch.optim.SGD(self.groups(model, method, 1e-8), lr=1e-8)
        source = self.mixed or self.batches.train
        began, taken, warm = time.monotonic(), 0, False
        model.train()
        while taken < _PROBED_STEPS and time.monotonic() - began < _PROBED_SECONDS:
            for x, y, _ in source.batches(0):
                images = cast(self.fabric.to_device(x), self.fabric)
                loss = objective(model(images), self.fabric.to_device(y))
                (loss if extras is None else loss + extras(model)).backward()
                optimizer.step()
                optimizer.zero_grad()
                method.step()
                if not warm:  # the first step allocates
                    warm, began = True, time.monotonic()
                    continue
                taken += 1
                if taken >= _PROBED_STEPS or time.monotonic() - began > _PROBED_SECONDS:
                    break
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)
        step = (time.monotonic() - began) / max(taken, 1)
        began = time.monotonic()
        if self.batches.validation is not None:
            outputs(model, self.batches.validation, fabric=self.fabric)
        method.remove()
        return step * len(source) + time.monotonic() - began, before

    def _prepared(
        self, weight: float | None, epochs: int
    ) -> tuple[nn.Module, Method, Extras | None]:
        # Nothing that ran before may decide what is drawn from here on.
        torch.manual_seed(self.runtime.seed)
        model = copy_module(self.start.model).to(self.fabric.device)
        if self.finetune.freeze_batchnorm:
            freeze_batchnorm_(model)
        method = make_method(self.finetune, weight, self.runtime.seed, self.start.source)
        steps = max(len(self.batches.train) * epochs, 1)
        method.prepare(model, self.once, steps=steps, classifier=self.start.classifier)
        method = method.to(self.fabric.device)
        if not self.extras:
            return model, method, None
        context = TermContext(
            splits=self.splits,
            classifier=self.start.classifier,
            batch_size=self.optim.batch_size,
            steps=steps,
            seed=self.runtime.seed,
            device=self.fabric.device,
        )
        return model, method, Extras([e.term(model, context) for e in self.extras], self.fabric)


def tuner(
    start: Start,
    splits: Splits,
    finetune: FinetuneConfig,
    optim: OptimConfig,
    runtime: RuntimeConfig,
    fabric: Any,
    *,
    augment: Augmentation = "none",
    metric: Metric = "accuracy",
    extras: tuple[ExtraTerm, ...] = (),
) -> Tuner:
    """Return what trains: batches in an order that the seed decides, augmented for training.

    Raises:
        InputError: There are no training images.
    """
    data = DataConfig(augment=augment)
    if runtime.precision == "64-true":  # before a method takes its references from the network
        start.model.double()
        if start.source is not None:
            start.source.double()

    def drawn(splits: Splits) -> Batches:
        return loaders(splits, data, optim, seed=runtime.seed, device=fabric.device)

    once = batches = drawn(splits)
    if finetune.balanced_sampling:
        rows = repeated(splits.train.labels)
        batches = drawn(replace(splits, train=splits.train.subset(rows)))
    mixed = None
    if finetune.mixup is not None:
        classes, seed = splits.num_classes, runtime.seed
        mixed = Mixup(batches.train, alpha=finetune.mixup, num_classes=classes, seed=seed)
    target = (splits, once.train, batches, mixed)
    return Tuner(start, *target, finetune, optim, runtime, fabric, augment, metric, extras)


def repeated(labels: torch.Tensor) -> torch.Tensor:
    """Return indices [m] in which every class has as many images as the largest, its own over again."""
    counts = torch.bincount(labels)
    rows = [(labels == k).nonzero().flatten() for k in counts.nonzero().flatten().tolist()]
    most = int(counts.max())
    return torch.cat([r.repeat(-(-most // len(r)))[:most] for r in rows])


def normalised(
    splits: Splits, start: Start, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Splits:
    """Return the target with the mean and std named, or those that the start was trained with.

    Raises:
        InputError: Numbers that do not fit the images.
    """
    if mean is None or std is None:
        mean, std = start.mean, start.std
    if mean is None or std is None:
        return splits
    if len(mean) != splits.channels or len(std) != splits.channels or min(std) <= 0:
        raise InputError(
            f"--mean {list(mean)} and --std {list(std)}: expected a number for each of the "
            f"{splits.channels} channel(s), std above 0"
        )
    return replace(splits, mean=mean, std=std)
