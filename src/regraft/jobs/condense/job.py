"""One run that condenses a data set: for `regraft condense`, and for recipes that learn from the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.config import DataConfig, ModelConfig
from regraft.data import Splits
from regraft.errors import InputError
from regraft.generators import CondenseConfig, Condenser
from regraft.generators.settings import Method
from regraft.generators.siamese import TRANSFORMS
from regraft.jobs.base import Job
from regraft.jobs.data import load_once
from regraft.jobs.merge.data import present
from regraft.models import build
from regraft.train import RunFolder, peak_bytes, reset_peak
from regraft.train.fabric import device_of
from regraft.train.loop import Progress

# Mirrored, a character is another one or none.
_CHARACTERS = ("digits", "mnist", "kmnist", "emnist", "emnist_digits", "emnist_balanced")


def transforms_for(data: str, method: str) -> tuple[str, ...] | None:
    """Return the transforms of a method on a data set, None for all of the method's own."""
    if method == "dc" or data not in _CHARACTERS:
        return None
    return tuple(kind for kind in TRANSFORMS if kind != "flip")


@dataclass(frozen=True, kw_only=True)
class CondenseJob(Job):
    """Everything that determines a condensed set; `condensed.safetensors` in its folder.

    Attributes:
        setting: Name of the data set, below which the run lies.
        arm: Name of the method.
        data: The data set; the training images are condensed.
        model: The random networks.
        per_class: Synthetic images of each class.
        method: `dc`, `dsa` or `dm`.
        condense: Further settings.
    """

    arm: str = "condensed"
    data: DataConfig
    model: ModelConfig
    per_class: int = 10
    method: Method = "dc"
    condense: CondenseConfig = field(default_factory=CondenseConfig)

    def config(self) -> dict[str, Any]:
        """See `Job.config`; a method that came later than the field goes without saying."""
        config = super().config()
        if self.method == "dc":
            del config["method"]
        return config

    def file(self, root: Path) -> Path:
        """Return where the condensed set lies once the run is finished."""
        return self.folder(root) / "condensed.safetensors"

    def images(self) -> Splits:
        """Return the data set.

        Raises:
            InputError: It is a graph.
        """
        splits = load_once(self.data)
        if not isinstance(splits, Splits):
            raise InputError(f"--data {self.data.name} is a graph and no set of images")
        return splits

    def condenser(self) -> Condenser:
        """Return the condensation, not begun.

        Raises:
            InputError: Data or settings that cannot be condensed.
        """
        splits = self.images()
        images, classes = present(splits.train)
        shape: Any = {
            "num_classes": images.num_classes,
            "channels": splits.channels,
            "image_size": splits.image_size,
        }
        return Condenser(
            images,
            lambda: build(self.model, **shape),
            per_class=self.per_class,
            method=self.method,
            config=self.condense,
            mean=splits.mean,
            std=splits.std,
            classes=[splits.classes[c] for c in classes.tolist()],
            seed=self.runtime.seed,
            device=device_of(self.runtime),
        )

    def advance(
        self,
        condenser: Condenser,
        folder: RunFolder,
        progress: Progress | None,
        *,
        max_seconds: float | None = None,
    ) -> dict[str, Any]:
        """Condense in an open folder, or go on, to the end or until the time is over; return the result."""
        condenser.run(
            checkpoint=folder.path / "checkpoint.safetensors",
            checkpoint_seconds=self.runtime.checkpoint_seconds,
            max_seconds=max_seconds,
            progress=progress,
        )
        folder.check_there()
        folder.truncate_metrics(0)
        for restart, loss in enumerate(condenser.losses, start=1):
            row = {"step": restart, "epoch": restart - 1, "split": "condense"}
            folder.log({**row, "loss": loss})
        size = 0
        if folder.writes:
            size = condenser.result().save(folder.path / "condensed.safetensors")
        return {
            "metrics": {"matching_loss": condenser.losses[-1]},
            "seconds": round(condenser.seconds, 3),
            "trainable_parameters": condenser.images.numel(),
            "stored_bytes": size,
            "peak_memory_bytes": peak_bytes(),
        }

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Condense; see `Job.work`."""
        reset_peak()
        return self.advance(self.condenser(), folder, progress)
