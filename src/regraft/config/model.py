"""Which network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from .check import POSITIVE


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network: a built-in name, `timm/NAME`, or `package.module:factory`."""

    name: str = "conv_small"
    width: Annotated[float, POSITIVE] = 1.0
    """Width factor of the built-in networks."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the factory."""
