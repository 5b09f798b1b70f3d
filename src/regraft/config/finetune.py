"""How a pretrained network is fine-tuned, and what is chosen on validation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from .check import AT_LEAST_1, BELOW_1, FACTOR, FOLDS, NOT_NEGATIVE, POSITIVE

Metric = Literal["accuracy", "balanced_accuracy"]
"""A figure of validation images: the share that is right, or the mean of the classes' shares."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a pretrained network is fine-tuned: the method, and what goes with any of them."""

    method: str = "adarand"
    """A name of `regraft.features.METHODS`."""
    weight: Annotated[float | None, NOT_NEGATIVE] = None
    """The method's weight; without it its own default."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the method."""
    ema: Annotated[float | None, BELOW_1] = None
    """Decay of a running average of the weights, which is then what is evaluated and kept."""
    mixup: Annotated[float | None, POSITIVE] = None
    """alpha of mixup."""
    layer_decay: Annotated[float, FACTOR] = 1.0
    """Factor of the learning rate from a layer to the one below it."""
    head_factor: Annotated[float, POSITIVE] = 1.0
    """Learning rate of the classifier over that of the layer below it."""
    freeze_batchnorm: bool = False
    """Keep BatchNorm in evaluation mode."""
    class_weights: bool = False
    """Weigh the loss of each class by the inverse of its number of images."""
    balanced_sampling: bool = False
    """Show the images of rare classes over again, until all classes are as many in an epoch."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What is chosen on validation before training, and how much time that may take."""

    seconds: Annotated[float, POSITIVE.of("--budget")] = 600.0
    """About how long the search may take; the plan that fits is made once, from measured steps."""
    trials: Annotated[int | None, AT_LEAST_1] = None
    """Compare this many settings whatever the time, so that the plan is the same everywhere."""
    lr: Annotated[tuple[float, ...], POSITIVE] = ()
    """Learning rates to choose from, the most promising first; none for a grid by optimiser."""
    weight: Annotated[tuple[float, ...], NOT_NEGATIVE] = ()
    """Weights to choose from; none for a grid around the method's own."""
    folds: Annotated[int | None, FOLDS] = None
    """Judge settings by this many folds of all images that are not for the test, 0 for the validation
    images; without a number five where there are fewer than 50 of these."""
    choose_by: Literal["auto", "accuracy", "balanced"] = "auto"
    """The figure that settings and states are chosen by; auto is balanced where a class has less than
    half of the images of another."""
