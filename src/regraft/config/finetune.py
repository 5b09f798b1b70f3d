"""How a pretrained network is fine-tuned, and what is chosen on validation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from .check import AT_LEAST_2, BELOW_1, FACTOR, NOT_NEGATIVE, POSITIVE


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


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What is chosen on validation before training, and how much time that may take."""

    seconds: Annotated[float, POSITIVE.of("--budget")] = 600.0
    """About how long the search may take; the plan that fits is made once, from measured steps."""
    trials: Annotated[int | None, AT_LEAST_2] = None
    """Compare this many settings whatever the time, so that the plan is the same everywhere."""
    lr: Annotated[tuple[float, ...], POSITIVE] = ()
    """Learning rates to choose from, the most promising first; none for a grid by optimiser."""
    weight: Annotated[tuple[float, ...], NOT_NEGATIVE] = ()
    """Weights to choose from; none for a grid around the method's own."""
