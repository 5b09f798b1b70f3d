"""A target network trained on few labels: from scratch, from PP, with P-SSL, or from a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.checkpoints.read import fit_names, read_checkpoint
from regraft.checkpoints.write import write_model
from regraft.config import ModelConfig, OptimConfig, SetConfig, SslConfig
from regraft.data import ImageSet, TensorLoader
from regraft.data.views import weak
from regraft.errors import InputError
from regraft.generators.pseudo import (
    Distillation,
    ImagePool,
    PseudoSamples,
    PseudoTerm,
    Unlabelled,
    conditions,
)
from regraft.jobs.base import Job
from regraft.models import build
from regraft.models.classifier import find_classifier
from regraft.train import Average, Batches, RunFolder, fit, make_fabric
from regraft.train.loop import Progress

from .foreign import ForeignClassifier, ForeignGenerator
from .generator import GeneratorJob
from .pretrain import PretrainJob, about_of
from .sets import MEAN, STD, StepBatches, load_set, target_set


@dataclass(frozen=True, kw_only=True)
class TargetJob(Job):
    """Everything that determines a network for the target; `model.safetensors` in its folder.

    Attributes:
        target: The labelled training images.
        test: The images that the result is measured on.
        model: The network.
        steps: Optimiser steps.
        optim: Batch size, learning rate and the rest; its epochs are not used.
        start: What its body starts from.
        teacher: What it learns from beside the labels.
        distil: How: squared distance of the logits, or KL of softened probabilities.
        distil_weight: Weight of that loss.
        distil_temperature: What both logits are divided by for `soft`.
        unlabelled: Images without labels: `pseudo` ones of the generator, the source's `real` ones, or the
            `target` images themselves, without their labels.
        generator: The generator of `pseudo` images.
        classifier: The source classifier whose answers are their conditions.
        real: The images of `real`.
        ssl: The loss on images without labels.
        ema: Decay of the average of the weights that is evaluated.
    """

    keeps_checkpoint = False  # stored as the model

    target: SetConfig
    test: SetConfig
    model: ModelConfig
    steps: int = 400
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=0.02, batch_size=32, epochs=1, schedule="cosine")
    )
    start: PretrainJob | TargetJob | None = None
    teacher: TargetJob | None = None
    distil: Literal["logits", "soft"] | None = None
    distil_weight: float = 1.0
    distil_temperature: float = 4.0
    unlabelled: Literal["pseudo", "real", "target"] | None = None
    generator: GeneratorJob | ForeignGenerator | None = None
    classifier: TargetJob | ForeignClassifier | None = None
    real: SetConfig | None = None
    ssl: SslConfig = field(default_factory=SslConfig)
    ema: float = 0.99

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Train and measure; see `Job.work`."""
        fabric = make_fabric(self.runtime)
        seed = self.runtime.seed
        images, classes = target_set(self.target, seed=seed)
        test, _ = load_set(self.test, seed=0)
        torch.manual_seed(seed)
        network = self._network(images)
        if self.start is not None:
            start_body(network, self.start.folder(root) / "model.safetensors")
        if self.runtime.precision == "64-true":  # before a term or an average copies weights
            network.double()
        channels = images.channels
        moments: Any = {"mean": (MEAN,) * channels, "std": (STD,) * channels}
        train = StepBatches(
            images, self.steps, self.optim.batch_size, **moments, seed=seed, views=weak()
        )
        tested = TensorLoader(
            test, batch_size=500, shuffle=False, augment="none", seed=0, **moments
        )
        term = self._term(images, root, moments)
        penalty, loss = None, None
        steppers = {}
        if term is not None:
            counted = Counted(term)
            steppers, penalty = {"pseudo": counted}, counted.loss
        if self.distil is not None:
            loss = self._distillation(network, root)
        result = fit(
            network,
            Batches(train, None, tested),
            optim=self.optim,
            runtime=self.runtime,
            folder=folder,
            steppers=steppers,
            loss=loss,
            penalty=penalty,
            progress=progress,
            fabric=fabric,
            average=Average(network, decay=self.ema),
        )
        if loss is not None:
            loss.close()
        if term is not None:
            summary = term.ssl.confidence.summary()
            result["confidence"] = summary
            result["metrics"]["confident"] = 100 * summary["passed"]
        shape = {"channels": channels, "image_size": images.image_size}
        if folder.writes:
            about = about_of(self.model, shape, classes, self.arm)
            write_model(folder.path / "model.safetensors", network, about)
        return result

    def _network(self, images: ImageSet) -> nn.Module:
        shape: Any = {"channels": images.channels, "image_size": images.image_size}
        return build(self.model, num_classes=images.num_classes, **shape)

    def trained(self, root: Path) -> Callable[[Tensor], Tensor]:
        """Return the finished network, in evaluation mode, as a function of normalised images."""
        images, _ = load_set(self.target, seed=self.runtime.seed)
        network = self._network(images)
        stored = read_checkpoint(self.folder(root) / "model.safetensors")
        network.load_state_dict(dict(fit_names(stored, network)))
        return network.eval().requires_grad_(False)

    def _term(self, images: ImageSet, root: Path, moments: dict[str, Any]) -> PseudoTerm | None:
        pool = self._pool(images, root)
        if pool is None:
            return None
        return PseudoTerm.of(
            pool, self.ssl, head_lr=self.optim.lr, seed=self.runtime.seed, **moments
        )

    def _pool(self, images: ImageSet, root: Path) -> Unlabelled | None:
        seed = self.runtime.seed
        if self.unlabelled is None:
            return None
        if self.unlabelled == "target":
            return ImagePool(images, seed=seed)
        if self.unlabelled == "real":
            if self.real is None:
                raise InputError("unlabelled='real' needs a set of real images")
            return ImagePool(load_set(self.real, seed=seed)[0], seed=seed)
        if self.generator is None:
            raise InputError("unlabelled='pseudo' needs a generator")
        source = self.generator.source(root)
        if self.classifier is None and self.ssl.conditions != "uniform":
            raise InputError("conditions of target images need a source classifier")
        classifier = None if self.classifier is None else self.classifier.trained(root)
        normalised = (images.images.float() / 255 - MEAN) / STD
        q = conditions(
            classifier or (lambda x: x),
            normalised,
            source.classes,
            kind=self.ssl.conditions,
            temperature=self.ssl.temperature,
        )
        return PseudoSamples(source, q, seed=seed)

    def _distillation(self, network: nn.Module, root: Path) -> Distillation:
        if self.teacher is None:
            raise InputError("distilling needs a teacher")
        return Distillation(
            network,
            self.teacher.trained(root),
            kind=self.distil or "soft",
            weight=self.distil_weight,
            temperature=self.distil_temperature,
        )


def start_body(network: nn.Module, path: Path) -> None:
    """Load everything but the classifier from a file of the same architecture.

    Raises:
        InputError: The file is of another network.
    """
    name, _ = find_classifier(network)
    own = network.state_dict()
    loaded = dict(read_checkpoint(path))
    body = {k: v for k, v in loaded.items() if not k.startswith(f"{name}.")}
    wanted = {k for k in own if not k.startswith(f"{name}.")}
    if body.keys() != wanted or any(own[k].shape != v.shape for k, v in body.items()):
        raise InputError(f"{path} is of another network: its body does not fit this one")
    network.load_state_dict({**own, **body})


class Counted:
    """A P-SSL term with the number of the step, as the training loop takes them."""

    def __init__(self, term: PseudoTerm) -> None:
        self.term, self.at = term, 0

    def loss(self, model: nn.Module) -> Tensor:
        """Return the term of this step."""
        return self.term.loss(model, self.at)

    def step(self) -> None:
        """Go on to the next step."""
        self.at += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the term's state."""
        return {"at": self.at, "term": self.term.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.at = int(state["at"])
        self.term.load_state_dict(state["term"])
