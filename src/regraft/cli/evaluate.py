"""`regraft evaluate`: how good a fine-tuned model is on labelled images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from regraft.jobs.predict.labelled_images import Labelled, labelled_images
from regraft.jobs.predict.used_images import Seen

from .json_option import Values
from .options import Data, DataOptions, DeviceOptions, Options, OutputOptions
from .output import print_json, say, table

if TYPE_CHECKING:
    from regraft.jobs.predict.finetuned import Finetuned

_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class Evaluate(Options):
    """Measure a model of `regraft finetune`: accuracy, calibration, figures of each class."""

    result: Annotated[Path, tyro.conf.Positional]
    """The result folder, or the model.safetensors in it."""
    data: str
    """A folder with a subfolder for each class (its test part if it has one), or a known set. Of the
    folder that the model was trained on, the images that it has not seen."""
    all_images: bool = False
    """Measure on the images too that split.csv beside the model lists for training or validation."""
    out: Path | None = None
    """Write all figures, the confusion matrix among them, to this JSON file as well."""
    model: str | None = None
    """Build this network instead of the one the file names: a name or package.module:factory."""
    sets: Data = field(default_factory=DataOptions)
    runtime: DeviceOptions = field(default_factory=DeviceOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Load the model and the images, predict, tell."""
        from regraft.files import write_json
        from regraft.jobs.predict.finetuned import load_finetuned
        from regraft.train import evaluation

        device = self.runtime.for_inference()
        tuned = load_finetuned(self.result, model=self.model, device=device)
        listed = None if self.all_images else Seen.of(tuned.path)
        images = labelled_images(
            tuned,
            tuned.path,
            self.data,
            self.sets.data_root,
            download=not self.sets.offline,
            trained_on=listed,
            unreadable=self.sets.unreadable,
        )
        logits = tuned.logits(map(tuned.preparation.normalised, images.pixels(_BATCH)))
        figures = {
            "data": images.name,
            "split": images.split,
            "note": images.note or self._of_training(tuned, images, listed),
            **evaluation(logits, images.labels, tuned.classes, temperature=tuned.temperature),
        }
        if self.out is not None:
            write_json(self.out, figures)
        if self.output.json:
            print_json({"result": str(self.result), **figures})
        else:
            self._tell(figures)
        return 0

    def _of_training(self, tuned: Finetuned, images: Labelled, listed: Seen | None) -> str:
        """Return what has to be said where a network may have been trained on these images."""
        same = images.split != "test" and tuned.about.get("data") == images.name
        if listed is not None or self.all_images or not same:
            return ""
        return (
            f"the network was trained on images of {images.name}, and no split.csv beside it says which: "
            "some of these may be among them, and new ones do worse"
        )

    def _tell(self, figures: Values) -> None:
        from regraft.report.finetuned import by_class, confusions

        if figures["note"]:
            say(figures["note"])
        where = f"{figures['split']} images" if figures["split"] != "all" else "images"
        say(
            f"accuracy on {figures['data']}: {figures['accuracy']:.2f}% of {figures['images']} {where}"
        )
        say(
            f"mean over classes: {figures['balanced_accuracy']:.2f}%; loss: {figures['loss']:.4f}; "
            f"calibration error: {figures['calibration_error']:.2f}% "
            f"(without temperature {figures['uncalibrated']['calibration_error']:.2f}%)"
        )
        table(["class", "images", "recall (%)", "precision (%)", "F1 (%)"], by_class(None, figures))
        pairs = confusions(figures)
        if pairs:
            table(["most often confused", "taken for", "images"], pairs)
