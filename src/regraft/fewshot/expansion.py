"""Convolution of few input channels as one product with the patches of its input.

    y = W_(out, c k k) U,   U = unfold(x) of shape [c k k, b L]

On a CPU the convolution library is slow where the input has one or three channels: at 28x28 pixels, 3x3 and
64 outputs the product takes a tenth of the time. From about 27 rows on copying the patches costs more than
it saves (16 channels and more: 0.8 times as fast), so wider layers stay convolutions.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 27
"""Up to so many values of a patch the product is faster (measured at 3x3 and 5x5)."""


class ExpandedConv(nn.Module):
    """An ordinary `Conv2d` of a few channels; parameters keep their names."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.how = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images [b, c, h, w]."""
        kernel, dilation, padding, stride = self.how
        sides = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1  # pyrefly: ignore
            for n, k, d, p, s in zip(x.shape[2:], kernel, dilation, padding, stride, strict=True)
        )
        patches = F.unfold(x, *self.how).transpose(0, 1).flatten(1)  # pyrefly: ignore
        y = self.weight.flatten(1) @ patches
        if self.bias is not None:
            y = y + self.bias[:, None]
        return y.view(len(y), len(x), *sides).transpose(0, 1)


def worth_expanding(module: nn.Module) -> bool:
    """Whether a layer is a plain `Conv2d` that is faster as a product."""
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.weight[0].numel() <= PATCH
        and module.weight.device.type == "cpu"
    )
