"""`regraft predict`: the classes of images, with calibrated probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from regraft.jobs.predict.pictures import decoded, files_of
from regraft.jobs.predict.predictions import as_csv, best, headings

from .output import print_json, table


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Classify images with a model of `regraft finetune`."""

    result: Annotated[Path, tyro.conf.Positional]
    """The result folder, or the model.safetensors in it."""
    images: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(help_behavior_hint="(one or more)"),
    ]
    """Image files, and folders of them."""
    top: int = 3
    """How many classes to name for each image."""
    csv: bool = False
    """Print CSV instead of a table."""
    out: Path | None = None
    """Write the predictions to this CSV file as well."""
    model: str | None = None
    """Build this network instead of the one the file names: a name or package.module:factory."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """CPU threads."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> int:
        """Load the model, predict, tell."""
        import torch

        from regraft.errors import InputError
        from regraft.files import write_text
        from regraft.jobs.predict.finetuned import load_finetuned

        if not self.images:
            raise InputError("images: name image files or folders")
        for name in ("top", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}: expected at least 1")
        if self.csv and self.json:
            raise InputError("--csv and --json exclude each other: give one")
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        paths = files_of(self.images)
        tuned = load_finetuned(self.result, model=self.model, accelerator=self.accelerator)
        shape = tuned.about["input"]
        pixels = decoded(paths, shape["channels"], shape["image_size"])
        logits = tuned.logits(map(tuned.preparation.normalised, pixels))
        found = best(paths, tuned.classes, tuned.probabilities(logits), self.top)
        if self.out is not None:
            write_text(self.out, as_csv(found))
        self._tell(found)
        return 0

    def _tell(self, found: list[dict[str, Any]]) -> None:
        if self.json:
            print_json({"result": str(self.result), "images": found})
        elif self.csv:
            print(as_csv(found), end="")
        else:
            lines = [
                [f["image"], *(f"{t['class']} {t['probability']:.1%}" for t in f["top"])]
                for f in found
            ]
            table(headings(len(lines[0]) - 1), lines)
