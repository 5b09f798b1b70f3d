"""One fine-tuning run of a network with a method: what the search repeats and the end result is."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from regraft.config import FinetuneConfig, OptimConfig, RuntimeConfig
from regraft.errors import DivergenceError, InputError
from regraft.features import METHODS, Method, Objective, freeze_batchnorm_
from regraft.features import build as build_method
from regraft.models.copying import copy_module
from regraft.protocols import BatchSource
from regraft.train import Average, Batches, RunFolder, fit, layerwise_groups, outputs
from regraft.train.loop import Progress

from .start import Start

_PROBED_STEPS = 4
_PROBED_SECONDS = 3.0


@dataclass(frozen=True, eq=False)
class Workshop:
    """Everything that the trials of a search share.

    Attributes:
        start: The network that each trial copies.
        batches: Training batches as they are; for validation, and for the final figure.
        mixed: The training batches that are trained on, where that are others.
        finetune: Method and what goes with it.
        optim: Optimiser and length; a trial brings its learning rate.
        runtime: Where to compute.
        fabric: A launched Fabric.
    """

    start: Start
    batches: Batches
    mixed: BatchSource | None
    finetune: FinetuneConfig
    optim: OptimConfig
    runtime: RuntimeConfig
    fabric: Any

    def train(
        self,
        lr: float,
        weight: float | None,
        epochs: int,
        folder: RunFolder,
        *,
        progress: Progress | None = None,
        test: bool = False,
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Train a copy of the network and return it with the result; see `regraft.train.fit`.

        Args:
            lr: Learning rate.
            weight: The method's weight; None for its own.
            epochs: Length.
            folder: An open run folder.
            progress: Called after every step.
            test: Measure on the test images too.

        Raises:
            DivergenceError: A loss or a feature is not finite.
        """
        optim = replace(self.optim, lr=lr, epochs=epochs)
        model, method = self._prepared(weight, epochs)
        average = None
        if self.finetune.ema is not None:
            average = Average(model, decay=self.finetune.ema)
        batches = Batches(
            self.mixed or self.batches.train,
            self.batches.validation,
            self.batches.test if test else None,
        )
        try:
            result = fit(
                model,
                batches,
                optim=optim,
                runtime=self.runtime,
                folder=folder,
                fabric=self.fabric,
                loss=Objective(method, nn.CrossEntropyLoss(label_smoothing=optim.label_smoothing)),
                steppers={"method": cast("Any", method)},
                groups=self.groups(model, method, lr),
                average=average,
                progress=progress,
            )
        except torch.linalg.LinAlgError as error:
            # A decomposition (BSS, DR-Tune) meets the NaN before the loss is read.
            raise DivergenceError(
                f"the features are no longer finite in {folder.path} ({error}): lower the learning rate "
                f"(now {lr:g})"
            ) from error
        if method.tap is not None:
            method.tap.remove()
        return model, result

    def groups(self, model: nn.Module, method: Method, lr: float) -> list[dict[str, Any]]:
        """Return the optimiser's groups: the network's by layer, then the method's own."""
        head = self.finetune.head_factor
        own = layerwise_groups(
            model,
            self.start.classifier,
            lr=lr,
            decay=self.finetune.layer_decay,
            head_factor=head,
        )
        return [*own, *method.param_groups(lr * head)]

    def measure(self) -> tuple[float, float]:
        """Return about how many seconds an epoch takes with its validation, and a start before it.

        A copy of the network takes a few steps and one pass over the validation images.
        """
        began = time.monotonic()
        model, method = self._prepared(None, self.optim.epochs)
        before = time.monotonic() - began
        objective = Objective(method).train()
        optimizer = torch.optim.SGD(self.groups(model, method, 1e-8), lr=1e-8)
        source = self.mixed or self.batches.train
        began, taken, warm = time.monotonic(), 0, False
        model.train()
        while taken < _PROBED_STEPS and time.monotonic() - began < _PROBED_SECONDS:
            for x, y, _ in source.batches(0):
                objective(model(self.fabric.to_device(x)), self.fabric.to_device(y)).backward()
                optimizer.step()
                optimizer.zero_grad()
                method.step()
                if not warm:  # the first step allocates
                    warm, began = True, time.monotonic()
                    continue
                taken += 1
                if taken >= _PROBED_STEPS or time.monotonic() - began > _PROBED_SECONDS:
                    break
        self._wait()
        step = (time.monotonic() - began) / max(taken, 1)
        began = time.monotonic()
        if self.batches.validation is not None:
            outputs(model, self.batches.validation, fabric=self.fabric)
        if method.tap is not None:
            method.tap.remove()
        return step * len(source) + time.monotonic() - began, before

    def _wait(self) -> None:
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)

    def _prepared(self, weight: float | None, epochs: int) -> tuple[nn.Module, Method]:
        # Nothing that ran before may decide what is drawn from here on.
        torch.manual_seed(self.runtime.seed)
        model = copy_module(self.start.model).to(self.fabric.device)
        if self.finetune.freeze_batchnorm:
            freeze_batchnorm_(model)
        method = make_method(self.finetune, weight, self.runtime.seed, self.start.source)
        method.prepare(
            model,
            self.batches.train,
            steps=max(len(self.batches.train) * epochs, 1),
            classifier=self.start.classifier,
        )
        return model, method.to(self.fabric.device)


def make_method(
    config: FinetuneConfig, weight: float | None, seed: int, source: nn.Module | None = None
) -> Method:
    """Return the method of a config, at another weight where one is given.

    Raises:
        InputError: An unknown method or option, or no source classifier where one is needed.
    """
    options: dict[str, Any] = {"seed": seed, **config.options}
    if weight is None:
        weight = config.weight
    if weight is not None:
        options["weight"] = weight
    if config.method == "co_tuning" and "source_head" not in options:
        if source is None:
            raise InputError(
                "method 'co_tuning' needs the classifier of the source: give --checkpoint with a "
                "classifier in it, or --pretrained"
            )
        options["source_head"] = source
    return build_method(config.method, **options)


def has_weight(name: str) -> bool:
    """Whether a method has a weight to choose."""
    return "weight" in _parameters(name)


def own_weight(config: FinetuneConfig) -> tuple[float, bool]:
    """Return a method's own weight, and whether it is relative to the scale of the features."""
    parameters = _parameters(config.method)
    default = parameters["normalise"].default if "normalise" in parameters else False
    return parameters["weight"].default, bool(config.options.get("normalise", default))


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(METHODS[name]).parameters
