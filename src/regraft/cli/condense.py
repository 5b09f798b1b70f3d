"""`regraft condense`: a data set as a handful of synthetic images a class."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from regraft.config import ModelConfig
from regraft.config.check import NOT_NEGATIVE

from .options import (
    ImageOptions,
    LongRuntimeOptions,
    ModelOptions,
    Network,
    Options,
    ResultOptions,
    SplitOptions,
    default_out,
    pick,
    registered,
)
from .output import tell

if TYPE_CHECKING:
    from regraft.jobs.condense.job import CondenseJob


TRANSFORM_NAMES = registered("generators/siamese.py", r'^    "(\w+)": _\w+,$')


@dataclass(frozen=True, kw_only=True)
class _Matching(Options):
    """How images are matched; what is left out is chosen by method, images a class and network."""

    restarts: int | None = None
    """Random networks; by default 100, for dm 2000. The papers take 1000 and 20000."""
    outer: int | None = None
    """Matching steps for one network; by default as many as images a class, 50 at most."""
    inner: int | None = None
    """Training epochs between two of them; by default 500 / outer."""
    lr_images: float | None = None
    """Learning rate of the images; by default by method, network and restarts."""
    lr_network: float = 0.01
    """Learning rate of the networks."""
    real_batch: int = 256
    """Real images of each class in a step."""
    init: Literal["noise", "real"] | None = None
    """Start from noise (the default of dc) or from real images (dsa, dm), better in few restarts."""
    transforms: Annotated[
        tuple[str, ...] | None,
        tyro.conf.arg(
            help=f"dsa, dm: {', '.join(TRANSFORM_NAMES)}; by default all, without flip of digits."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Condense(Options):
    """Condense a data set into a few synthetic images a class on which networks learn.

    Leaves a folder with `condensed.safetensors`, a picture and a page of the images; the same
    command goes on after an interruption.
    """

    data: str = "digits"
    """A known data set (`regraft data list`) or a folder of images, one subfolder a class."""
    out: Path | None = None
    """Folder to make or go on with; runs/condense-DATA-METHOD without it."""
    per_class: int = 10
    """Synthetic images of each class."""
    method: Literal["dc", "dsa", "dm"] = "dc"
    """Match gradients (dc), gradients under augmentation (dsa), or mean embeddings (dm)."""
    model: str | None = None
    """Networks to match in; by default an mlp of two layers of 128 for dc, conv_small otherwise."""
    max_seconds: Annotated[float | None, NOT_NEGATIVE] = None
    """Stop after this time; the same command then goes on."""
    evaluate: bool = False
    """Train networks on the images, on as many random ones and on all, and compare them."""
    evaluate_model: str | None = None
    """Network to evaluate with; by default the one the images were condensed with."""
    evaluate_seeds: int = 3
    """Seeds of the evaluation."""
    matching: _Matching = field(default_factory=_Matching)
    sets: Annotated[SplitOptions, tyro.conf.arg(name="data")] = field(
        default_factory=lambda: SplitOptions(validation=0.0)
    )
    images: ImageOptions = field(default_factory=ImageOptions)
    network: Network = field(default_factory=ModelOptions)
    runtime: LongRuntimeOptions = field(default_factory=LongRuntimeOptions)
    output: ResultOptions = field(default_factory=ResultOptions)

    def run(self) -> int:
        """Condense, show progress, and tell what came of it."""
        from regraft.jobs.condense.run import Evaluation, run_condense

        self.check()
        model = None if self.evaluate_model is None else ModelConfig(name=self.evaluate_model)
        out, json = self.folder(), self.output.json
        done = run_condense(
            self.job(),
            out,
            max_seconds=self.max_seconds,
            evaluation=Evaluation(wanted=self.evaluate, model=model, seeds=self.evaluate_seeds),
            bar=not json,
        )
        tell(done, out, "condense", as_json=json)
        return 0

    def folder(self) -> Path:
        """Return the result folder."""
        return self.out or default_out("condense", self.data, self.method)

    def job(self) -> CondenseJob:
        """Return what is to be done.

        Raises:
            InputError: Options out of their range.
        """
        from regraft.generators import CondenseConfig
        from regraft.jobs.condense.job import CondenseJob, transforms_for
        from regraft.jobs.condense.run import setting_of

        images, transforms = self.images.config(), self.matching.transforms
        if transforms is None:
            transforms = transforms_for(self.data, self.method)
        job = CondenseJob(
            setting="",
            arm=self.method,
            data=self.sets.config(
                self.data, image_size=images.image_size, channels=images.channels
            ),
            model=self._model(),
            per_class=self.per_class,
            method=self.method,
            condense=pick(CondenseConfig, self.values(), transforms=transforms),
            runtime=self.runtime.config(
                refuse=("devices", "precision"),
                because="images are condensed by one process, in float32",
            ),
        )
        return replace(job, setting=setting_of(job, job.model))

    def _model(self) -> ModelConfig:
        if self.model is not None or self.method != "dc":
            return self.network.config(self.model or "conv_small")
        model = self.network.config("mlp")
        return replace(model, options={"widths": [128, 128], **model.options})
