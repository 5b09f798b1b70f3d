"""Training a small conditional generator, as a run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from regraft.config import GeneratorConfig, SetConfig
from regraft.files import write_tensors
from regraft.generators.sources import GeneratorTraining, ModuleSource, make_generator
from regraft.generators.sources.load import OWN
from regraft.generators.sources.own import KEY, read_generator
from regraft.jobs.base import Job
from regraft.train import RunFolder, make_fabric
from regraft.train.loop import Progress

from .drive import drive
from .sets import load_set


@dataclass(frozen=True, kw_only=True)
class GeneratorJob(Job):
    """Everything that determines a trained generator; `generator.safetensors` in its folder.

    Attributes:
        images: What it is trained on.
        generator: Which one, and how long.
    """

    keeps_checkpoint = False  # stored as the generator

    images: SetConfig
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)

    def source(self, root: Path) -> ModuleSource:
        """Return the finished generator as a source."""
        return read_generator(self.folder(root) / OWN)

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Train; see `Job.work`."""
        fabric = make_fabric(self.runtime)
        images, classes = load_set(self.images, seed=self.runtime.seed)
        config = self.generator
        torch.manual_seed(self.runtime.seed)
        channels, height, width = images.images.shape[1:]
        shape = (channels, height, width)
        generator = make_generator(config.kind, shape, images.num_classes, **config.options)
        generator.to(fabric.device)
        training = GeneratorTraining(
            generator,
            images,
            steps=config.steps,
            batch_size=config.batch_size,
            lr=config.lr,
            decay=config.decay,
            seed=self.runtime.seed,
        )
        result = drive(training, generator, folder, self.runtime, progress)
        training.finish()
        about = {
            "kind": config.kind,
            "options": config.options,
            "image_shape": list(shape),
            "classes": list(classes),
            "data": self.images.data.name,
        }
        if folder.writes:
            tensors = {k: v.detach().cpu().clone() for k, v in generator.state_dict().items()}
            write_tensors(folder.path / OWN, tensors, {KEY: json.dumps(about)})
        return result
