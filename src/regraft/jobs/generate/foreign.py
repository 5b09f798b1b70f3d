"""What somebody else trained, in the place of what a recipe trains: a generator, a source classifier."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regraft.checkpoints.read import fit_names, read_checkpoint
from regraft.config import SetConfig, SourceConfig
from regraft.data import ImageSet, data_root
from regraft.digests import weights_digest
from regraft.errors import InputError
from regraft.generators.sources import Source, load_source
from regraft.generators.sources.quality import measure
from regraft.jobs.base import Job
from regraft.models.external import call, imported
from regraft.train import RunFolder, make_fabric
from regraft.train.loop import Progress

from .sets import MEAN, STD, load_set


@dataclass(frozen=True, kw_only=True)
class ForeignJob(Job):
    """A trained module of somebody's, which is only measured; the base of the two below.

    Attributes:
        factory: `package.module:factory`.
        weights: File of its weights, below the folder of the data sets.
        test: Real images of its classes.
    """

    keeps_checkpoint = False  # it lies where it was

    factory: str
    weights: str
    test: SetConfig

    @property
    def file(self) -> Path:
        """The file of the weights.

        Raises:
            InputError: It is not there.
        """
        folder = data_root(self.test.data.root)
        file = folder / self.weights
        if not file.is_file():
            raise InputError(
                f"{file} is missing: bring the weights of {self.factory} to {self.weights} in the "
                "folder of the data sets (--data-root, or REGRAFT_DATA)"
            )
        return file

    def fingerprints(self) -> Iterable[dict[str, Any]]:
        """Return what the data sets and the weights are known by; see `Job.fingerprints`."""
        return (*super().fingerprints(), {"weights": weights_digest(self.file)})

    def measured(self, images: ImageSet) -> dict[str, float]:
        """Return what is measured on real images, by name."""
        raise NotImplementedError

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Measure; see `Job.work`."""
        make_fabric(self.runtime)
        images, _ = load_set(self.test, seed=0)
        began = time.monotonic()
        metrics = self.measured(images)
        return {"metrics": metrics, "seconds": round(time.monotonic() - began, 3)}


@dataclass(frozen=True, kw_only=True)
class ForeignGenerator(ForeignJob):
    """Somebody's conditional generator: see `regraft.generators.sources.quality` for what is measured.

    Attributes:
        images: Real images that the measuring network learns from, for comparison.
        samples: Generated images that it learns from.
    """

    images: SetConfig
    samples: int = 5000

    def source(self, root: Path) -> Source:
        """Return it as a source; `root` is not needed."""
        return load_source(SourceConfig(name=self.factory, weights=str(self.file)))

    def measured(self, images: ImageSet) -> dict[str, float]:
        """Return the classification accuracy score, that of real images, and the ratio of spreads."""
        real, _ = load_set(self.images, seed=0)
        quality = measure(
            self.source(Path()), real, images, samples=self.samples, seed=self.runtime.seed
        )
        accuracies = {"classification_accuracy_score": quality.cas}
        if quality.real is not None:
            accuracies["real_accuracy"] = quality.real
        return {**accuracies, "spread": quality.spread}


@dataclass(frozen=True, kw_only=True)
class ForeignClassifier(ForeignJob):
    """Somebody's classifier of images in [-1, 1]."""

    def trained(self, root: Path) -> Callable[[Tensor], Tensor]:
        """Return it in evaluation mode; `root` is not needed.

        Raises:
            InputError: No such factory, or weights that do not fit.
        """
        made = imported(self.factory, "classifier")
        module = made if isinstance(made, nn.Module) else call(self.factory, made, {})
        module.load_state_dict(dict(fit_names(read_checkpoint(self.file), module)))
        return module.eval().requires_grad_(False)

    @torch.no_grad()
    def measured(self, images: ImageSet) -> dict[str, float]:
        """Return the accuracy."""
        classify = self.trained(Path())
        parts = images.images.split(500)
        answers = torch.cat([classify((x.float() / 255 - MEAN) / STD).argmax(1) for x in parts])
        right = (answers == images.labels).double().mean().item()
        return {"test_accuracy": 100 * right}
