"""Frozen random weights as a function of (seed, name, event): never stored, always rebuilt.

References:
    Ramanujan et al., CVPR 2020, section 4 (signed Kaiming constant); He et al., ICCV 2015.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from regraft import streams
from regraft._shapes import Float
from regraft.errors import InputError

WeightInit = Literal["signed_kaiming_constant", "kaiming_uniform", "kaiming_normal"]
"""Laws of a search; `kaiming_constant`, all weights alike, is for Meta-ticket's ablation."""
ScoreInit = Literal["kaiming_uniform", "kaiming_normal"]
INITS = ("signed_kaiming_constant", "kaiming_uniform", "kaiming_normal", "kaiming_constant")

RELU_GAIN = math.sqrt(2.0)


def fan_in(shape: torch.Size | tuple[int, ...], name: str) -> int:
    """Return the inputs of one output unit: the product of all but the first dimension.

    Raises:
        InputError: The tensor has fewer than two dimensions.
    """
    if len(shape) < 2:
        raise InputError(
            f"weight {name!r} has shape {tuple(shape)}: a Kaiming scale needs a fan-in, so mask only "
            "tensors of two or more dimensions"
        )
    return math.prod(shape[1:])


@dataclass(frozen=True)
class WeightSource:
    """The random tensor behind a name, with sigma = gain / sqrt(fan_in).

    `signed_kaiming_constant` is +-sigma, `kaiming_constant` sigma, `kaiming_uniform` is
    U(-sqrt(3) sigma, sqrt(3) sigma) and `kaiming_normal` N(0, sigma^2). Values are
    float32, one rounding away from the stream's own.

    Attributes:
        init: The law.
        seed: Seed of the whole network.
        name: Name of the parameter when it was masked: the key of its stream.
        shape: Shape of the tensor.
        gain: Gain of the non-linearity, sqrt(2) for ReLU.

    Raises:
        InputError: An unknown law.
    """

    init: str
    seed: int
    name: str
    shape: tuple[int, ...]
    gain: float = RELU_GAIN

    def __post_init__(self) -> None:
        if self.init not in INITS:
            raise InputError(f"init={self.init!r}: expected one of {', '.join(INITS)}")
        fan_in(self.shape, self.name)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> WeightSource:
        """Return the source whose `dataclasses.asdict` went through JSON."""
        plain: dict[str, Any] = {**fields, "shape": tuple(fields["shape"])}
        return cls(**plain)

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def draw(self, event: int = 0, *, index: np.ndarray | None = None) -> Float[Tensor, " m"]:
        """Return the values of one event, flat float32: all of them, or those at `index`."""
        sigma = self.gain / math.sqrt(fan_in(self.shape, self.name))
        if self.init == "kaiming_constant":
            return torch.full((self.numel if index is None else len(index),), sigma)
        law, scale = {
            "signed_kaiming_constant": (streams.signs, sigma),
            "kaiming_uniform": (streams.uniform, math.sqrt(3.0) * sigma),
            "kaiming_normal": (streams.normal, sigma),
        }[self.init]
        values = law(self.seed, self.name, event, self.numel, index=index)
        return values.mul_(float(np.float32(scale)))

    def rebuild(self, draw: Tensor | None = None) -> Tensor:
        """Return the tensor after re-randomisation, float32 shaped `shape`.

        Each event that occurs costs a pass over its whole stream, however few positions it has.

        Args:
            draw: For every position the event its value was last drawn at (integers, shaped
                `shape`); None means that all stand as first drawn.
        """
        values = self.draw()
        if draw is not None:
            events = draw.reshape(-1).cpu().numpy()
            moved = np.flatnonzero(events)
            order = moved[np.argsort(events[moved], kind="stable")]
            starts = np.flatnonzero(np.diff(events[order], prepend=-1))
            for index in np.split(order, starts[1:]) if order.size else []:
                values[torch.from_numpy(index)] = self.draw(int(events[index[0]]), index=index)
        return values.reshape(self.shape)
