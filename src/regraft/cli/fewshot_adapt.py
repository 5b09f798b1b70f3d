"""`regraft fewshot adapt`: a classifier of new classes from a few images of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .options import DeviceOptions, Options, OutputOptions, default_out
from .output import tell


@dataclass(frozen=True, kw_only=True)
class FewshotAdapt(Options):
    """Make a classifier of new classes from a few images of each.

    Leaves a folder with model.safetensors, which `regraft predict` and `regraft evaluate` open, and a
    card. BatchNorm keeps the statistics of the support images, so that every image is classified by
    itself.
    """

    result: Annotated[Path, tyro.conf.Positional]
    """Folder of `regraft fewshot train`, or the model.ticket or model.safetensors in it."""
    support: Annotated[Path, tyro.conf.Positional]
    """Folder with a subfolder of a few images for each new class."""
    out: Path | None = None
    """Folder to make; runs/adapt-NAME by default, after the folder of the images."""
    test: Path | None = None
    """Folder with other images of the same classes, on which the classifier is measured."""
    steps: int | None = None
    """Inner steps; by default as many as in the test of the learner."""
    model: str | None = None
    """Build this network instead of the one the file names: a name or package.module:factory."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Stop at an image that cannot be decoded, or warn and go on."""
    runtime: DeviceOptions = field(default_factory=DeviceOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Adapt, measure, write the card, and tell."""
        from regraft.jobs.fewshot.adapt import Adaptation
        from regraft.jobs.verb import Done

        out = self.out or default_out("adapt", self.support.resolve().name)
        card = Adaptation(
            result=self.result,
            support=self.support,
            test=self.test,
            out=out,
            steps=self.steps,
            model=self.model,
            unreadable=self.unreadable,
            device=self.runtime.for_inference(),
        ).run()
        tell(Done(card, before=False), out, "adapt", as_json=self.output.json)
        return 0
