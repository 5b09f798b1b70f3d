"""PP as a run: a network pre-trained on images of a generator, or on real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from regraft.checkpoints.write import write_model
from regraft.config import ModelConfig, PretrainConfig, SetConfig, to_dict
from regraft.errors import InputError
from regraft.generators.pseudo import Pretraining
from regraft.generators.sources import ImageSource, Source
from regraft.jobs.base import Job
from regraft.models import build
from regraft.train import RunFolder, make_fabric
from regraft.train.loop import Progress

from .drive import drive
from .foreign import ForeignGenerator
from .generator import GeneratorJob
from .sets import MEAN, STD, load_set


@dataclass(frozen=True, kw_only=True)
class PretrainJob(Job):
    """Everything that determines a pre-trained network; `model.safetensors` in its folder.

    Attributes:
        model: The network.
        generator: The generator whose images it learns, or
        real: the real images in its place (the oracle).
        pretrain: How long, and how.
    """

    keeps_checkpoint = False  # stored as the model

    model: ModelConfig
    generator: GeneratorJob | ForeignGenerator | None = None
    real: SetConfig | None = None
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def check(self) -> None:
        """Refuse what cannot be run; see `Job.check`."""
        super().check()
        if (self.generator is None) == (self.real is None):
            raise InputError(
                "a pre-training is from a generator or from real images: give one of them"
            )

    def origin(self, root: Path) -> tuple[Source, tuple[str, ...]]:
        """Return what the images come from, and the names of its classes."""
        if self.generator is not None:
            source = self.generator.source(root)
            return source, source.class_names
        images, classes = load_set(self.real, seed=self.runtime.seed)  # pyrefly: ignore
        return ImageSource(images), classes

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Pre-train; see `Job.work`."""
        make_fabric(self.runtime)
        source, classes = self.origin(root)
        torch.manual_seed(self.runtime.seed)
        channels, height, _ = source.image_shape
        shape = {"channels": channels, "image_size": height}
        network = build(self.model, num_classes=source.classes, **shape)
        config = self.pretrain
        work = Pretraining(
            network,
            source,
            steps=config.steps,
            batch_size=config.batch_size,
            lr=config.lr,
            weight_decay=config.weight_decay,
            optimizer=config.optimizer,
            mean=(MEAN,) * channels,
            std=(STD,) * channels,
            seed=self.runtime.seed,
        )
        result = drive(work, network, folder, self.runtime, progress)
        if folder.writes:
            names = classes or tuple(str(i) for i in range(source.classes))
            about = about_of(self.model, shape, names, "pseudo pre-training")
            write_model(folder.path / "model.safetensors", network, about)
        return result


def about_of(
    model: ModelConfig, shape: dict[str, int], classes: Sequence[str], method: str
) -> dict[str, Any]:
    """Return what the file of a network says that takes images normalised by `MEAN` and `STD`."""
    channels = shape["channels"]
    return {
        "model": to_dict(model),
        "input": shape,
        "mean": [MEAN] * channels,
        "std": [STD] * channels,
        "classes": list(classes),
        "method": method,
    }
