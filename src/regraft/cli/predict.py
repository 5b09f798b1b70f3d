"""`regraft predict`: the classes of images, with calibrated probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from regraft.config.check import AT_LEAST_1
from regraft.errors import InputError
from regraft.jobs.predict.pictures import decoded, files_of, readable
from regraft.jobs.predict.predictions import as_csv, best

from .json_option import Values
from .options import DeviceOptions, Options, OutputOptions
from .output import predictions, print_json


@dataclass(frozen=True, kw_only=True)
class Predict(Options):
    """Classify images with a model of `regraft finetune`."""

    result: Annotated[Path, tyro.conf.Positional]
    """The result folder, or the model.safetensors in it."""
    images: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(help_behavior_hint="(one or more)")
    ]
    """Image files, and folders of them."""
    top: Annotated[int, AT_LEAST_1] = 3
    """How many classes to name for each image."""
    csv: bool = False
    """Print CSV instead of a table."""
    out: Path | None = None
    """Write the predictions to this CSV file as well."""
    model: str | None = None
    """Build this network instead of the one the file names: a name or package.module:factory."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Stop at an image that cannot be decoded, or name it and go on."""
    runtime: DeviceOptions = field(default_factory=DeviceOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Load the model, predict, tell."""
        from regraft.files import write_text
        from regraft.jobs.predict.finetuned import load_finetuned

        if not self.images:
            raise InputError("images: name image files or folders")
        self.check()
        if self.csv and self.output.json:
            raise InputError("--csv and --json exclude each other: give one")
        device = self.runtime.for_inference()
        paths = files_of(self.images)
        tuned = load_finetuned(self.result, model=self.model, device=device)
        shape = tuned.about["input"]
        left: dict[Path, str] | None = {} if self.unreadable == "skip" else None
        pixels = decoded(paths, shape["channels"], shape["image_size"], unreadable=left)
        logits = tuned.logits(map(tuned.preparation.normalised, pixels))
        rows = best(readable(paths, left), tuned.classes, tuned.probabilities(logits), self.top)
        if self.out is not None:
            write_text(self.out, as_csv(rows))
        self._tell(rows, [str(path) for path in left or ()])
        return 0

    def _tell(self, rows: list[Values], left: list[str]) -> None:
        if self.output.json:
            print_json({"result": str(self.result), "images": rows, "left_out": left})
        elif self.csv:
            print(as_csv(rows), end="")
        else:
            predictions(rows)
