"""PP as a run: a network pre-trained on images of a generator, or on real ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from regraft.checkpoints.model_card import header
from regraft.config import ModelConfig, PretrainConfig, SetConfig, to_dict
from regraft.errors import InputError
from regraft.files import write_tensors
from regraft.generators.pseudo import Pretraining
from regraft.generators.sources import ImageSource, Source
from regraft.jobs.base import Job
from regraft.models import build
from regraft.train import RunFolder, make_fabric, peak_bytes, reset_peak
from regraft.train.loop import Progress

from .drive import drive
from .generator import GeneratorJob
from .sets import load_set

MEAN, STD = 0.5, 0.5
"""How images are normalised for networks that start from a generator, whose moments nobody knows."""


@dataclass(frozen=True, kw_only=True)
class PretrainJob(Job):
    """Everything that determines a pre-trained network; `model.safetensors` in its folder.

    Attributes:
        model: The network.
        generator: The generator whose images it learns, or
        real: the real images in its place (the oracle).
        pretrain: How long, and how.
    """

    model: ModelConfig
    generator: GeneratorJob | None = None
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
        reset_peak()
        seconds = drive(
            work,
            folder,
            checkpoint_seconds=self.runtime.checkpoint_seconds,
            log_every=self.runtime.log_every,
            progress=progress,
        )
        about = {
            "model": to_dict(self.model),
            "input": shape,
            "mean": [MEAN] * channels,
            "std": [STD] * channels,
            "classes": list(classes) or [str(i) for i in range(source.classes)],
            "method": "pseudo pre-training",
        }
        if folder.writes:
            write_network(folder.path / "model.safetensors", network, about)
            (folder.path / "checkpoint.safetensors").unlink(missing_ok=True)
        return {
            "metrics": {"train_accuracy": work.newest["accuracy"]},
            "seconds": seconds,
            "trainable_parameters": sum(p.numel() for p in network.parameters()),
            "peak_memory_bytes": peak_bytes(),
        }


def write_network(path: Path, network: torch.nn.Module, about: dict[str, Any]) -> None:
    """Write a network's weights and what they are of."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}
    write_tensors(path, tensors, header(about))
