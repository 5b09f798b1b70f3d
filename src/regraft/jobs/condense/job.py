"""One run that condenses a data set, for the recipes that learn from the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.config import DataConfig, ModelConfig
from regraft.data import ImageSet, Splits
from regraft.errors import InputError
from regraft.generators import CondenseConfig, Condenser
from regraft.jobs.base import Job
from regraft.jobs.data import load_once
from regraft.jobs.merge.data import present
from regraft.models import build
from regraft.train import RunFolder, make_fabric, peak_bytes, reset_peak
from regraft.train.loop import Progress


@dataclass(frozen=True, kw_only=True)
class CondenseJob(Job):
    """Everything that determines a condensed set; `condensed.safetensors` in its folder.

    Attributes:
        setting: Name of the data set, below which the run lies.
        arm: Name of the method.
        data: The data set; the training images are condensed.
        model: The random networks.
        per_class: Synthetic images of each class.
        condense: Further settings.
    """

    arm: str = "condensed"
    data: DataConfig
    model: ModelConfig
    per_class: int = 10
    condense: CondenseConfig = field(default_factory=CondenseConfig)

    def file(self, root: Path) -> Path:
        """Return where the condensed set lies once the run is finished."""
        return self.folder(root) / "condensed.safetensors"

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Condense; see `Job.work`."""
        fabric = make_fabric(self.runtime)
        splits = load_once(self.data)
        if not isinstance(splits, Splits) or not isinstance(splits.train, ImageSet):
            raise InputError(f"data {self.data.name!r}: condensing needs images in memory")
        images, classes = present(splits.train)
        shape: Any = {
            "num_classes": images.num_classes,
            "channels": splits.channels,
            "image_size": splits.image_size,
        }
        reset_peak()
        condenser = Condenser(
            images,
            lambda: build(self.model, **shape),
            per_class=self.per_class,
            config=self.condense,
            mean=splits.mean,
            std=splits.std,
            classes=[splits.classes[c] for c in classes.tolist()],
            seed=self.runtime.seed,
            device=fabric.device,
        )
        folder.truncate_metrics(0)
        condenser.run(
            checkpoint=folder.path / "condensing.safetensors",
            checkpoint_seconds=self.runtime.checkpoint_seconds,
            progress=progress,
        )
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
