"""A network trained on few labels with further losses on generated or real images: MGR, PCR, controls."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.checkpoints.write import write_model
from regraft.config import MGRConfig, ModelConfig, OptimConfig, SetConfig
from regraft.data import ImageSet, TensorLoader
from regraft.data.split import stratified_split
from regraft.data.views import strong
from regraft.errors import InputError
from regraft.generators.mgr import MGR
from regraft.generators.sources import ImageSource, Source
from regraft.jobs.base import Job
from regraft.jobs.finetune.extra import Extras
from regraft.models import build
from regraft.train import Batches, RunFolder, fit, make_fabric
from regraft.train.loop import Progress

from .generator import GeneratorJob
from .pretrain import PretrainJob, about_of
from .sets import MEAN, STD, StepBatches, load_set, target_set
from .target import start_body


@dataclass(frozen=True, kw_only=True)
class ImageTerm:
    """A further loss, and which images it is on.

    Attributes:
        images: Those of the `generator`, the `target`'s own real ones, or `more` real ones.
        loss: The loss, and how images are chosen.
    """

    images: Literal["generator", "target", "more"] = "generator"
    loss: MGRConfig = field(default_factory=MGRConfig)


@dataclass(frozen=True, kw_only=True)
class RegularisedJob(Job):
    """Everything that determines such a training; `model.safetensors` in its folder.

    Attributes:
        target: The labelled images.
        test: The images that the result is measured on.
        model: The network.
        steps: Optimiser steps, the same for all arms.
        optim: Batch size, learning rate and the rest; its epochs are not used.
        start: What the network's body starts from; random weights without it.
        generator: The generator.
        more: Further real images.
        terms: The further losses; none is the baseline.
        labels: Train on the labels of the target; without it on the further losses alone.
        held_out: Share of the target that is not trained on and that validates; without it folds of
            the whole target do.
        oracle: Further labelled images that validate, an upper bound and no method.
    """

    keeps_checkpoint = False  # stored as the model

    target: SetConfig
    test: SetConfig
    model: ModelConfig
    steps: int = 300
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=0.05, batch_size=32, epochs=1, schedule="cosine")
    )
    start: PretrainJob | None = None
    generator: GeneratorJob | None = None
    more: SetConfig | None = None
    terms: tuple[ImageTerm, ...] = ()
    labels: bool = True
    held_out: float = 0.0
    oracle: SetConfig | None = None

    def check(self) -> None:
        """Refuse what cannot be run; see `Job.check`."""
        super().check()
        for term in self.terms:
            if term.images == "generator" and self.generator is None:
                raise InputError("a term is on generated images and there is no generator")
            if term.images == "more" and self.more is None:
                raise InputError("a term is on more real images and there are none")

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Train and measure; see `Job.work`."""
        fabric = make_fabric(self.runtime)
        seed = self.runtime.seed
        images, classes = target_set(self.target, seed=seed)
        test, _ = load_set(self.test, seed=0)
        validation = self._validation(images)
        if self.held_out:
            kept, _ = stratified_split(images.labels, self.held_out, seed)
            images = images.subset(kept)
        torch.manual_seed(seed)
        shape: Any = {"channels": images.channels, "image_size": images.image_size}
        network = build(self.model, num_classes=images.num_classes, **shape)
        if self.start is not None:
            start_body(network, self.start.folder(root) / "model.safetensors")
        if self.runtime.precision == "64-true":  # before a term or an average copies weights
            network.double()
        moments: Any = {"mean": (MEAN,) * images.channels, "std": (STD,) * images.channels}
        train = StepBatches(images, self.steps, self.optim.batch_size, **moments, seed=seed)
        tested = TensorLoader(
            test, batch_size=500, shuffle=False, augment="none", seed=0, **moments
        )
        network = network.to(fabric.device)
        terms = [
            self._term(i, term, network, images, validation, root, moments)
            for i, term in enumerate(self.terms)
        ]
        extras = Extras(terms, fabric) if terms else None
        result = fit(
            network,
            Batches(train, None, tested),
            optim=self.optim,
            runtime=self.runtime,
            folder=folder,
            fabric=fabric,
            loss=None if self.labels else Silent(),
            penalty=extras,
            steppers={} if extras is None else {"extras": extras},
            progress=progress,
        )
        result["metrics"] |= _logged(terms)
        result["notes"] = [note for term in terms for note in term.notes]
        if folder.writes:
            about = about_of(self.model, shape, classes, self.arm)
            write_model(folder.path / "model.safetensors", network, about)
        return result

    def _validation(self, images: ImageSet) -> ImageSet | None:
        if self.oracle is not None:
            return load_set(self.oracle, seed=self.runtime.seed)[0]
        if not self.held_out:
            return None
        _, held = stratified_split(images.labels, self.held_out, self.runtime.seed)
        return images.subset(held)

    def _term(
        self,
        number: int,
        term: ImageTerm,
        network: nn.Module,
        images: ImageSet,
        validation: ImageSet | None,
        root: Path,
        moments: dict[str, Any],
    ) -> MGR:
        mgr = MGR(
            self._source(term, images, root),
            term.loss,
            views=strong(),
            seed=1000 * self.runtime.seed + number,
        )
        held = None if validation is None else (validation.images, validation.labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it is among the notes
            return mgr.prepare(
                network,
                images.images,
                images.labels,
                validation=held,
                batch=self.optim.batch_size,
                **moments,
            )

    def _source(self, term: ImageTerm, images: ImageSet, root: Path) -> Source:
        if term.images == "target":
            return ImageSource(images)
        if term.images == "more" and self.more is not None:
            return ImageSource(load_set(self.more, seed=self.runtime.seed)[0])
        if self.generator is None:
            raise InputError("a term is on generated images and there is no generator")
        return self.generator.source(root)


class Silent(nn.Module):
    """The base loss of a training without labels: zero, with a graph."""

    def forward(self, output: Tensor, _: Tensor) -> Tensor:
        """Return 0 * mean(output)."""
        return 0.0 * output.mean()


def _logged(terms: list[MGR]) -> dict[str, float]:
    """Return the last figures of what was learned or chosen."""
    rows = [term.logged[-1] for term in terms if term.logged]
    if not rows:
        return {}
    return {k: v for k, v in rows[0].items() if k != "step" and math.isfinite(v)}
