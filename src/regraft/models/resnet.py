"""ResNets for small images: a 3x3 stem without pooling.

References:
    He et al., "Deep residual learning for image recognition", CVPR 2016.
    Chijiwa et al., "Pruning randomly initialized neural networks with iterative randomization",
    NeurIPS 2021 (the width factor leaves the stem alone, of ResNet-18 and 34).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from regraft.errors import InputError

from .base import Network, init_weights_, scaled


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut around them.

    Args:
        in_channels: Channels coming in.
        channels: Channels going out.
        stride: Stride of the first convolution; where it or the channels change, the shortcut
            is a 1x1 convolution with BatchNorm.
        affine: Give the norms scales and shifts.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, *, affine: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, affine=affine)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, affine=affine)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut.append(nn.Conv2d(in_channels, channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels, affine=affine))

    def forward(self, x: Tensor) -> Tensor:
        """Return [b, channels, h / stride, w / stride] for [b, in_channels, h, w]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(Network):
    """ResNet-18 or 34 for small images; the stem has 64 channels at every width factor.

    Args:
        depth: 18 or 34.
        num_classes: Number of classes.
        channels: Channels of the images.
        width: Width factor of the four stages (64, 128, 256 and 512 channels).
        affine: Give the norms scales and shifts.
        bias: Give the classifier a bias, zero at first; convolutions have none.

    Raises:
        InputError: Another depth.
    """

    blocks: ClassVar[dict[int, tuple[int, ...]]] = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
    """Blocks in each stage, by depth."""
    first: ClassVar[int] = 64
    """Channels of the first stage; those of the next are twice as many."""

    def __init__(
        self,
        depth: int,
        num_classes: int,
        *,
        channels: int = 3,
        width: float = 1.0,
        affine: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if depth not in self.blocks:
            raise InputError(f"depth={depth}: expected one of {', '.join(map(str, self.blocks))}")
        incoming = self.stem(width)
        layers: list[nn.Module] = [
            nn.Conv2d(channels, incoming, 3, 1, 1, bias=False),
            nn.BatchNorm2d(incoming, affine=affine),
            nn.ReLU(),
        ]
        for stage, blocks in enumerate(self.blocks[depth]):
            size = scaled(self.first << stage, width)
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(BasicBlock(incoming, size, stride, affine=affine))
                incoming = size
        self.features = nn.Sequential(*layers)
        self._set_head(incoming, num_classes, bias=bias)
        init_weights_(self)

    def stem(self, width: float) -> int:
        """Return the channels of the stem."""
        return self.first

    def pooled(self, features: Tensor) -> Tensor:
        """Average the last map [b, C, h, w] over its positions."""
        return features.mean(dim=(2, 3))


class ThinResNet(ResNet):
    """ResNet-8 or 20 for small images: three stages of 16, 32 and 64 channels; arguments as `ResNet`.

    The width factor scales all layers, the stem too. Shortcuts that change the shape are 1x1
    convolutions with BatchNorm (option B of He et al.).
    """

    blocks: ClassVar[dict[int, tuple[int, ...]]] = {8: (1, 1, 1), 20: (3, 3, 3)}
    first: ClassVar[int] = 16

    def stem(self, width: float) -> int:
        """Return the channels of the stem."""
        return scaled(self.first, width)
