"""Which generator, and how its images are learned from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from regraft.digests import file_digest, listing_digest, weights_digest
from regraft.machine import expanded

from .check import AT_LEAST_1, AT_LEAST_2, BELOW_1, NOT_NEGATIVE, POSITIVE
from .data import DataConfig
from .identity import to_dict

SOURCES = (
    "package.module:factory, a generator that was trained here, a bank, a diffusers folder, tar shards "
    "or a folder of images"
)
"""What can be a source, for help and messages: what `regraft.generators.sources.load_source` opens."""

SslName = Literal["uda", "fixmatch", "pseudo_label", "soft_pseudo_label", "entropy", "consistency"]
ConditionsName = Literal["soft", "hard", "uniform"]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Which generator, and what one batch of it does not tell.

    A field that is left open is looked up; see `regraft.generators.sources`.
    """

    name: str
    """One of `SOURCES`."""
    weights: str | None = None
    """File of its weights, for a factory."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the factory, or of the pipeline."""
    classes: Annotated[int | None, AT_LEAST_1] = None
    latent: Annotated[int | None, AT_LEAST_1] = None
    method: str | None = None
    """Method to call, e.g. `decode`."""
    labels: Literal["int", "onehot"] | None = None
    pixels: Literal["[-1,1]", "[0,1]", "[0,255]"] | None = None
    image_shape: tuple[int, int, int] | None = None
    """Channels, height and width, where the generator's output does not tell."""

    def config(self) -> dict[str, Any]:
        """Return the JSON form by which a run knows its generator again, files by what they hold.

        Raises:
            InputError: The weights cannot be read.
        """
        values, path = to_dict(self), expanded(self.name)
        # A trained generator's folder holds more, and a bank's manifest has its arrays' digests.
        known = (path, path / "generator.safetensors", path / "bank.json")
        file = next((f for f in known if f.is_file()), None)
        if file is not None:
            values["name"] = file_digest(file)
        elif path.is_dir():
            held = sorted(f for f in path.rglob("*") if f.is_file())
            values["name"] = listing_digest(path, held)
        if self.weights is not None:
            values["weights"] = weights_digest(self.weights)
        return values


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """Images of a known set or folder, some of them, with classes put together.

    Attributes:
        data: The set.
        part: Which of its images: `train`, `test`, or one half of the training images.
        groups: The labels that make each new class, all others left out; as they are without.
        size: Keep so many, stratified by class; which ones is the run's seed's choice.
    """

    data: DataConfig
    part: Literal["train", "first_half", "second_half", "test"] = "train"
    groups: tuple[tuple[int, ...], ...] = ()
    size: Annotated[int | None, AT_LEAST_1] = None


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """A small generator to train on the machine."""

    kind: Literal["vae", "flow"] = "vae"
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the generator: `latent`, `hidden`; `width`, `steps`."""
    steps: Annotated[int, AT_LEAST_1] = 2000
    batch_size: Annotated[int, AT_LEAST_1] = 128
    lr: Annotated[float, POSITIVE] = 1e-3
    decay: Annotated[float, BELOW_1] = 0.995
    """Decay of the average of the weights, which is what is kept."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pre-training on generated images."""

    steps: Annotated[int, AT_LEAST_1] = 1000
    batch_size: Annotated[int, AT_LEAST_2] = 64
    lr: Annotated[float, POSITIVE] = 0.05
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-4
    optimizer: Literal["sgd", "adamw"] = "sgd"


@dataclass(frozen=True, kw_only=True)
class SslConfig:
    """Semi-supervised learning on images without labels."""

    ssl: SslName = "uda"
    """The loss on them."""
    ssl_weight: Annotated[float, POSITIVE] = 1.0
    """Factor of that loss."""
    ssl_warmup: Annotated[int, NOT_NEGATIVE] = 100
    """Steps over which the factor rises from 0."""
    ssl_batch: Annotated[int, AT_LEAST_2] = 64
    """Images without labels a step."""
    ssl_temperature: Annotated[float | None, POSITIVE] = None
    """What logits are divided by for a target; the loss's own by default."""
    ssl_threshold: Annotated[float | None, BELOW_1] = None
    """Least probability of a target that counts; the loss's own by default."""
    own_head: bool = False
    """Give images without labels a head of their own, and train the classifier on real images alone."""
    conditions: ConditionsName = "soft"
    """What a source classifier's answer becomes on the way to the generator."""
    temperature: Annotated[float, POSITIVE] = 1.0
    """What the source classifier's logits are divided by."""
