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


class ExpandedConv(nn.Conv2d):
    """A `Conv2d` of a few channels with all it has but `forward`; make one of it by setting `__class__`."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve images [b, c, h, w]; one without a batch, or not on a CPU, as `Conv2d` does."""
        if input.device.type != "cpu" or input.ndim != 4:
            return super().forward(input)
        how = (self.kernel_size, self.dilation, self.padding, self.stride)
        kernel, dilation, padding, stride = how
        sides = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1  # pyrefly: ignore
            for n, k, d, p, s in zip(
                input.shape[2:], kernel, dilation, padding, stride, strict=True
            )
        )
        patches = F.unfold(input, *how).transpose(0, 1).flatten(1)  # pyrefly: ignore
        y = self.weight.flatten(1) @ patches
        if self.bias is not None:
            y = y + self.bias[:, None]
        return y.view(len(y), len(input), *sides).transpose(0, 1)


def worth_expanding(module: nn.Module) -> bool:
    """Whether a layer is a plain `Conv2d` that is faster as a product."""
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.weight[0].numel() <= PATCH
    )
