"""One run that condenses a data set, for the recipes that learn from the result."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from regraft.config import DataConfig, ModelConfig, RuntimeConfig, check, to_dict
from regraft.data import ImageSet, Splits
from regraft.errors import InputError
from regraft.generators import CondenseConfig, Condenser
from regraft.jobs.base import folder_of, open_folder
from regraft.jobs.merge.sets import present
from regraft.jobs.train import data_identity, fingerprint, load_once, runtime_identity
from regraft.models import build
from regraft.train import make_fabric, peak_bytes, reset_peak
from regraft.train.loop import Progress


@dataclass(frozen=True, kw_only=True)
class CondenseJob:
    """Everything that determines a condensed set; `condensed.safetensors` in its folder.

    Attributes:
        setting: Name of the data set, below which the run lies.
        arm: Name of the method.
        data: The data set; the training images are condensed.
        model: The random networks.
        per_class: Synthetic images of each class.
        condense: Further settings.
    """

    setting: str
    arm: str = "condensed"
    control: str | None = None
    data: DataConfig
    model: ModelConfig
    per_class: int = 10
    condense: CondenseConfig = field(default_factory=CondenseConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    @property
    def sources(self) -> tuple[()]:
        """Nothing has to be finished before."""
        return ()

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines the numbers."""
        return {
            "data": data_identity(self.data),
            "model": to_dict(self.model),
            "per_class": self.per_class,
            "condense": json.loads(json.dumps(asdict(self.condense))),
            "runtime": runtime_identity(self.runtime),
        }

    def folder(self, root: Path) -> Path:
        """Return the run's own folder below `root`."""
        return folder_of(self, root)

    def file(self, root: Path) -> Path:
        """Return where the condensed set lies once the run is finished."""
        return self.folder(root) / "condensed.safetensors"

    def with_seed(self, seed: int) -> CondenseJob:
        """Return the same run at another seed."""
        return replace(self, runtime=replace(self.runtime, seed=seed))

    def with_data_root(self, root: str) -> CondenseJob:
        """Return the same run with its data sets below `root`."""
        return replace(self, data=replace(self.data, root=root))

    def run(self, root: Path, *, progress: Progress | None = None) -> dict[str, Any]:
        """Condense, or go on, or return the result of a finished run.

        Raises:
            RegraftError: Whatever keeps the run from its end, in one sentence.
        """
        check(self.data, self.model, self.runtime)
        seed, path = self.runtime.seed, self.folder(root)
        with open_folder(self, root) as folder:
            if folder.result is not None:
                return folder.result
            fabric = make_fabric(self.runtime)
            splits = load_once(self.data)
            if not isinstance(splits, Splits) or not isinstance(splits.train, ImageSet):
                raise InputError(f"data {self.data.name!r}: condensing needs images in memory")
            folder.pin("data", fingerprint(splits))
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
                seed=seed,
                device=fabric.device,
            )
            folder.truncate_metrics(0)
            condenser.run(
                checkpoint=path / "condensing.safetensors",
                checkpoint_seconds=self.runtime.checkpoint_seconds,
                progress=progress,
            )
            for restart, loss in enumerate(condenser.losses, start=1):
                row = {"step": restart, "epoch": restart - 1, "split": "condense"}
                folder.log({**row, "loss": loss})
            result = {
                "metrics": {"matching_loss": condenser.losses[-1]},
                "seconds": round(condenser.seconds, 3),
                "trainable_parameters": condenser.images.numel(),
                "stored_bytes": condenser.result().save(self.file(root)) if folder.writes else 0,
                "peak_memory_bytes": peak_bytes(),
            }
            folder.finish(result)
            return {"schema": 1, **result}
