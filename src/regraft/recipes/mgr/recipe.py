"""MGR, PCR and controls on few labels, with generators trained on exactly these; numbers in `scales.toml`.

References:
    Yamaguchi et al., "Regularizing neural networks with meta-learning generative models", NeurIPS 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from regraft.config import (
    DataConfig,
    GeneratorConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RuntimeConfig,
    SetConfig,
)
from regraft.errors import InputError
from regraft.jobs.generate.generator import GeneratorJob
from regraft.jobs.generate.pretrain import PretrainJob
from regraft.jobs.generate.regularised import RegularisedJob
from regraft.recipes.notes import arm_names, read_data, read_rows
from regraft.recipes.recipe import Recipe, Scale, assemble

from .arms import LossWeights, make, plans
from .claims import read

_FILE = "scales.toml"
_CPU = RuntimeConfig(accelerator="cpu", threads=1, log_every=1000, checkpoint_seconds=60.0)
_GENERATOR_STEPS = 400


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    title = "MGR and PCR against their controls"
    groups = [Scale(row.jobs, row.seeds) for row in settings(scale)]
    return assemble(__package__ or "", groups, scale, seeds, title=title, read=read)


def settings(scale: str) -> list[MGRSetting]:
    """Return the rows of `scales.toml` for a scale."""
    return read_rows(__package__ or "", _FILE, scale, MGRSetting)


def weights_of(name: str) -> LossWeights:
    """Return the weights of a name in `chosen.toml`; those that it does not have are the default's.

    Raises:
        InputError: There are none of that name.
    """
    chosen = read_data(__package__ or "", "chosen.toml")
    if name not in chosen:
        raise InputError(f"chosen.toml has no {name!r}: expected one of {', '.join(chosen)}")
    return LossWeights(**{**chosen["default"], **chosen[name]})


@dataclass(frozen=True, kw_only=True)
class MGRSetting:
    """Arms on one set of labels with their generator; a row of `scales.toml`.

    Attributes:
        data: The set.
        size: Labels, stratified, drawn by the run's seed from the first half of the training images.
        seeds: How many seeds the arms have.
        arms: Names of arms, or of lists of them under `[arms]`.
        setting: Name of the setting, DATA/SIZE by default.
        weights: Name of the weights in `chosen.toml`.
        steps: Optimiser steps.
        batch: Real images a step.
        generated: Generated images a step, as many as real ones by default.
        model: The network.
        test_images: Images that the result is measured on; None for all.
        generator_images: Other images that the generator is trained on; exactly the labels by default.
        generator_steps: Its optimiser steps.
        start_steps: Steps of a network on 20,000 EMNIST letters that all arms start from.
        image_size: Side of the images, of other sets than small ones.
        runtime: Where to compute.
    """

    data: str
    size: int
    seeds: int
    arms: Sequence[str]
    setting: str | None = None
    weights: str = "default"
    steps: int = 120
    batch: int = 16
    generated: int | None = None
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name="conv_small", width=0.5))
    test_images: int | None = 4000
    generator_images: int | None = None
    generator_steps: int = _GENERATOR_STEPS
    start_steps: int | None = None
    image_size: int | None = None
    runtime: RuntimeConfig = _CPU

    def jobs(self) -> list[RegularisedJob]:
        """Return the arms in the order of the row."""
        return make(self.base, weights_of(self.weights), self.names(), batch=self.generated)

    def names(self) -> list[str]:
        """Return the names of the arms."""
        known = plans(LossWeights())
        return arm_names(__package__ or "", _FILE, self.arms, known=known)

    @property
    def base(self) -> RegularisedJob:
        """The base arm: its labels, its generator, and what the controls may look at."""
        data = DataConfig(name=self.data, validation=0.0, image_size=self.image_size)
        labels = SetConfig(data=data, part="first_half", size=self.size)
        other = SetConfig(data=data, part="second_half", size=self.generator_images)
        trained_on = labels if self.generator_images is None else other
        return RegularisedJob(
            setting=self.setting or f"{self.data}/{self.size}",
            arm="base",
            target=labels,
            test=SetConfig(data=data, part="test", size=self.test_images),
            model=self.model,
            steps=self.steps,
            optim=OptimConfig(lr=0.05, batch_size=self.batch, epochs=1, schedule="cosine"),
            start=self._start,
            generator=self._generator(trained_on),
            more=SetConfig(data=data, part="second_half", size=trained_on.size),
            oracle=SetConfig(data=data, part="second_half", size=1000),
            runtime=self.runtime,
        )

    def _generator(self, images: SetConfig) -> GeneratorJob:
        name = "vae" if self.generator_images is None else "vae_other"
        if self.generator_steps != _GENERATOR_STEPS:
            name += f"_{self.generator_steps}"
        shape = {"latent": 16, "hidden": 200}
        return GeneratorJob(
            setting=f"generators/{self.data}/{images.size}",
            arm=name,
            images=images,
            generator=GeneratorConfig(options=shape, steps=self.generator_steps, batch_size=64),
            runtime=self.runtime,
        )

    @property
    def _start(self) -> PretrainJob | None:
        if self.start_steps is None:
            return None
        letters = DataConfig(name="emnist", validation=0.0)
        return PretrainJob(
            setting="start/emnist",
            arm="real",
            model=self.model,
            real=SetConfig(data=letters, size=20000),
            pretrain=PretrainConfig(steps=self.start_steps),
            runtime=self.runtime,
        )
