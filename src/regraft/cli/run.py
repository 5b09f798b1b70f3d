"""`regraft ticket run`: what a ticket predicts, for images, a data set or a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from regraft.config.check import AT_LEAST_1
from regraft.errors import InputError

from .options import Data, DataOptions, DeviceOptions, Options, OutputOptions
from .output import predictions, print_json, say


@dataclass(frozen=True, kw_only=True)
class RunTicket(Options):
    """Predict with a ticket: classes of images, or the accuracy on a data set's test split.

    The network is rebuilt from the seed; nothing is trained.
    """

    ticket: Annotated[Path, tyro.conf.Positional]
    """The ticket file, or the run folder that holds it."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Image files, and folders of them."""
    data: str | None = None
    """Instead of images: a known data set, a graph, or a folder with a subfolder for each class."""
    top: Annotated[int, AT_LEAST_1] = 3
    """How many classes to name for each image."""
    out: Path | None = None
    """Write the predictions to this CSV file as well."""
    model: str | None = None
    """Build this network instead of the ticket's own: a name or package.module:factory."""
    all_images: bool = False
    """Measure on the images too that split.csv beside the ticket lists for training or validation."""
    sets: Data = field(default_factory=DataOptions)
    runtime: DeviceOptions = field(default_factory=DeviceOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Load the ticket, predict, tell."""
        from regraft.files import csv_text, write_text
        from regraft.jobs.predict.pictures import files_of, readable
        from regraft.jobs.predict.predictions import as_csv, best
        from regraft.jobs.ticket.classify import TicketClassifier

        if bool(self.images) == (self.data is not None):
            raise InputError(
                "images: name image files or folders, or give --data, and only one of the two"
            )
        self.check()
        classifier = TicketClassifier(
            self.ticket, model=self.model, device=self.runtime.for_inference()
        )
        if self.data is None:
            paths = files_of(self.images)
            classes = classifier.about["classes"]
            left: dict[Path, str] | None = {} if self.sets.unreadable == "skip" else None
            probabilities = classifier.pictures(paths, left)
            pictures = best(readable(paths, left), classes, probabilities, self.top)
            if self.out is not None:
                write_text(self.out, as_csv(pictures))
            if self.output.json:
                out = {"images": pictures, "left_out": [str(path) for path in left or ()]}
                print_json({"ticket": str(self.ticket), **out})
            else:
                predictions(pictures)
            return 0
        result = classifier.measure(self.sets.config(self.data), all_images=self.all_images)
        if self.out is not None:
            write_text(self.out, csv_text(result.rows()))
        n, accuracy = len(result.measured), result.accuracy
        if self.output.json:
            what = {"data": result.data, "split": result.split, "n": n, "accuracy": accuracy}
            what["note"] = result.note
            print_json({"ticket": str(self.ticket), **what})
        else:
            if result.note:
                say(result.note)
            said = f"{result.split} accuracy" if result.split == "test" else "accuracy"
            say(f"{said} on {result.data}: {accuracy:.2f}% of {n}")
        return 0
