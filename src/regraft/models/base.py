"""What the built-in networks share: timm's protocol for features and classifier, width, init."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A network that speaks timm's protocol; subclasses set `features` and call `_set_head`.

    `forward` is `forward_head(forward_features(x))`.
    """

    features: nn.Module
    head: nn.Linear
    num_classes: int
    num_features: int

    def _set_head(self, num_features: int, num_classes: int, *, bias: bool) -> None:
        self.num_features = num_features
        self.num_classes = num_classes
        self.head = nn.Linear(num_features, num_classes, bias=bias)

    @property
    def head_hidden_size(self) -> int:
        """Size of what `forward_head(..., pre_logits=True)` returns for one image."""
        return self.num_features

    def forward_features(self, x: Tensor) -> Tensor:
        """Return what comes before pooling and head, for images [b, C, H, W]."""
        return self.features(x)

    def pooled(self, features: Tensor) -> Tensor:
        """Turn what `forward_features` returns into vectors [b, num_features]."""
        return features.flatten(1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits [b, num_classes], or with `pre_logits` what the classifier is given."""
        vectors = self.pooled(x)
        return vectors if pre_logits else self.head(vectors)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [b, num_classes] for images [b, C, H, W]."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one for `num_classes`."""
        bias, like = self.head.bias is not None, self.head.weight
        self._set_head(self.num_features, num_classes, bias=bias)
        self.head.to(device=like.device, dtype=like.dtype)
        init_weights_(self.head)


def scaled(base: int, width: float) -> int:
    """Return a layer's number of channels at a width factor, at least 1."""
    return max(1, round(base * width))


def init_weights_(module: nn.Module) -> None:
    """Initialise convolutions and linear layers as the papers do: Kaiming uniform, biases zero.

    W ~ U(-b, b) with b = sqrt(6 / fan_in), the law whose standard deviation is sqrt(2 / fan_in).
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            bound = math.sqrt(6 / layer.weight[0].numel())
            with torch.no_grad():
                layer.weight.uniform_(-bound, bound)
                if layer.bias is not None:
                    layer.bias.zero_()
