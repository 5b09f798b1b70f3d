"""`regraft evaluate`: how good a fine-tuned model is on labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from regraft.jobs.predict.labelled import labelled
from regraft.jobs.predict.used_images import Seen

from .output import print_json, say, table

_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model of `regraft finetune`: accuracy, calibration, figures of each class."""

    result: Annotated[Path, tyro.conf.Positional]
    """The result folder, or the model.safetensors in it."""
    data: str
    """A folder with a subfolder for each class (its test part if it has one), or a known set. Of the
    folder that the model was trained on, the images that it has not seen."""
    all_images: bool = False
    """Measure on the images too that split.csv beside the model lists for training or validation."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Stop at an image that cannot be decoded, or warn and go on."""
    out: Path | None = None
    """Write all figures, the confusion matrix among them, to this JSON file as well."""
    model: str | None = None
    """Build this network instead of the one the file names: a name or package.module:factory."""
    data_root: str | None = None
    """Folder of the known data sets; without it REGRAFT_DATA, then ~/.cache/regraft/data."""
    offline: bool = False
    """Stop at a missing known set instead of fetching it."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """CPU threads."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> int:
        """Load the model and the images, predict, tell."""
        import json

        import torch

        from regraft.errors import InputError
        from regraft.files import write_text
        from regraft.jobs.predict.finetuned import load_finetuned
        from regraft.train import evaluation

        if self.threads is not None:
            if self.threads < 1:
                raise InputError(f"threads={self.threads}: expected at least 1")
            torch.set_num_threads(self.threads)
        tuned = load_finetuned(self.result, model=self.model, accelerator=self.accelerator)
        given = labelled(
            tuned,
            tuned.path,
            self.data,
            self.data_root,
            download=not self.offline,
            seen=None if self.all_images else Seen.of(tuned.path),
            unreadable=self.unreadable,
        )
        logits = tuned.logits(map(tuned.preparation.normalised, given.pixels(_BATCH)))
        found = {
            "data": given.name,
            "split": given.split,
            "note": given.note,
            **evaluation(logits, given.labels, tuned.classes, temperature=tuned.temperature),
        }
        if self.out is not None:
            write_text(self.out, json.dumps(found, indent=2) + "\n")
        if self.json:
            print_json({"result": str(self.result), **found})
        else:
            self._tell(found)
        return 0

    def _tell(self, found: dict[str, Any]) -> None:
        from regraft.report.finetuned import by_class, confusions

        if found["note"]:
            say(found["note"])
        where = f"{found['split']} images" if found["split"] != "all" else "images"
        say(f"accuracy on {found['data']}: {found['accuracy']:.2f}% of {found['images']} {where}")
        say(
            f"mean over classes: {found['balanced_accuracy']:.2f}%; loss: {found['loss']:.4f}; "
            f"calibration error: {found['calibration_error']:.2f}% "
            f"(without temperature {found['uncalibrated']['calibration_error']:.2f}%)"
        )
        table(["class", "images", "recall (%)", "precision (%)", "F1 (%)"], by_class(None, found))
        pairs = confusions(found)
        if pairs:
            table(["most often confused", "taken for", "images"], pairs)
