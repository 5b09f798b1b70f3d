"""Multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from regraft.errors import InputError

from .base import Network, init_weights_


class MLP(Network):
    """Flatten, then linear layers, each followed by a norm and ReLU, then a linear classifier.

    Args:
        in_features: Values in one flattened input.
        widths: Sizes of the hidden layers.
        num_classes: Number of classes.
        norm: `none`, `batch` (BatchNorm) or `layer` (LayerNorm) after every hidden linear layer.
        affine: Give the norms scales and shifts.
        bias: Give the linear layers biases.
        init: `kaiming` as all networks here (see `init_weights_`), or `torch`, which leaves weights
            and biases as PyTorch makes them: U(-b, b) with b = 1 / sqrt(fan_in), 2.4 times smaller.

    Raises:
        InputError: No hidden layer, a size below 1, or an unknown `norm` or `init`.
    """

    def __init__(
        self,
        in_features: int,
        widths: Sequence[int],
        num_classes: int,
        *,
        norm: Literal["none", "batch", "layer"] = "none",
        affine: bool = True,
        bias: bool = True,
        init: Literal["kaiming", "torch"] = "kaiming",
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise InputError(f"widths={tuple(widths)}: expected one or more sizes of at least 1")
        if norm not in ("none", "batch", "layer"):
            raise InputError(f"norm={norm!r}: expected 'none', 'batch' or 'layer'")
        if init not in ("kaiming", "torch"):
            raise InputError(f"init={init!r}: expected 'kaiming' or 'torch'")
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, size in zip((in_features, *widths), widths, strict=False):
            layers.append(nn.Linear(fan_in, size, bias=bias))
            if norm == "batch":
                layers.append(nn.BatchNorm1d(size, affine=affine))
            elif norm == "layer":
                layers.append(nn.LayerNorm(size, elementwise_affine=affine))
            layers.append(nn.ReLU())
        self.features = nn.Sequential(*layers)
        self._set_head(widths[-1], num_classes, bias=bias)
        if init == "kaiming":
            init_weights_(self)
