"""Plain convolutional networks: the papers' Conv2 to Conv8, and a small one for one CPU core.

References:
    Ramanujan et al., "What's hidden in a randomly weighted neural network?", CVPR 2020
    (Conv2 to Conv8).
    Chijiwa et al., "Pruning randomly initialized neural networks with iterative randomization",
    NeurIPS 2021 (Conv6, width factors).
"""

from __future__ import annotations

from torch import Tensor, nn

from regraft.errors import InputError

from .base import Network, init_weights_, scaled

_STAGES = (64, 128, 256, 512)
_HIDDEN = 256
_SMALL = (16, 32, 64)


class ConvN(Network):
    """Conv2, 4, 6 or 8: stages of two 3x3 convolutions and a 2x2 max-pool, then 256-256-classes.

    No normalisation. The stages have 64, 128, 256 and 512 channels; the width factor scales them
    and the two hidden linear layers. `forward_features` gives the map after the last pool.

    Args:
        depth: Number of convolutions: 2, 4, 6 or 8.
        num_classes: Number of classes.
        channels: Channels of the images.
        image_size: Side of the images in pixels; each stage halves it, rounding down.
        width: Width factor.
        bias: Give all layers biases, zero at first.

    Raises:
        InputError: Another depth, or images too small for the pools.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int,
        *,
        channels: int = 3,
        image_size: int = 32,
        width: float = 1.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if depth not in (2, 4, 6, 8):
            raise InputError(f"depth={depth}: expected 2, 4, 6 or 8 convolutions")
        stages = depth // 2
        side = _side_after(f"conv{depth}", image_size, stages)
        layers: list[nn.Module] = []
        for base in _STAGES[:stages]:
            size = scaled(base, width)
            for fan_in in (channels, size):
                layers += [nn.Conv2d(fan_in, size, 3, padding=1, bias=bias), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            channels = size
        self.features = nn.Sequential(*layers)
        hidden = scaled(_HIDDEN, width)
        self.hidden = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * side * side, hidden, bias=bias),
            nn.ReLU(),
            nn.Linear(hidden, hidden, bias=bias),
            nn.ReLU(),
        )
        self._set_head(hidden, num_classes, bias=bias)
        init_weights_(self)

    def pooled(self, features: Tensor) -> Tensor:
        """Pass the last map [b, C, h, w] through the hidden linear layers."""
        return self.hidden(features)


class ConvSmall(Network):
    """Three narrow strided 3x3 convolutions (16, 32, 64 channels) and a linear classifier.

    Made for one core: strides of 2 instead of pools leave a quarter of the arithmetic. Each
    convolution is followed by BatchNorm and ReLU and has no bias.

    Args:
        num_classes: Number of classes.
        channels: Channels of the images.
        image_size: Side of the images in pixels; each convolution halves it, rounding up.
        width: Width factor.
        affine: Give the norms scales and shifts.
        bias: Give the classifier a bias, zero at first.
        average: Give the classifier the last map's mean over positions, not all of its values.
        head_init: The classifier's first weights: `kaiming` as everything here, or `torch`, PyTorch's own,
            which are smaller and leave more of the logits to what training adds.

    Raises:
        InputError: An unknown `head_init`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        channels: int = 1,
        image_size: int = 28,
        width: float = 1.0,
        affine: bool = True,
        bias: bool = True,
        average: bool = False,
        head_init: str = "kaiming",
    ) -> None:
        super().__init__()
        if head_init not in ("kaiming", "torch"):
            raise InputError(f"head_init={head_init!r}: expected 'kaiming' or 'torch'")
        self.average = average
        side = 1 if average else image_size
        layers: list[nn.Module] = []
        for base in _SMALL:
            size = scaled(base, width)
            layers += [
                nn.Conv2d(channels, size, 3, padding=1, stride=2, bias=False),
                nn.BatchNorm2d(size, affine=affine),
                nn.ReLU(),
            ]
            channels = size
            side = (side + 1) // 2
        self.features = nn.Sequential(*layers)
        self._set_head(channels * side * side, num_classes, bias=bias)
        init_weights_(self)
        if head_init == "torch":
            self.head.reset_parameters()

    def pooled(self, features: Tensor) -> Tensor:
        """Flatten the last map [b, C, h, w], or average it."""
        return features.mean((2, 3)) if self.average else features.flatten(1)


def _side_after(name: str, image_size: int, pools: int) -> int:
    side = image_size >> pools
    if side < 1:
        raise InputError(
            f"image_size={image_size}: {name} halves images {pools} times; "
            f"resize them to at least {1 << pools} pixels or take a shallower network"
        )
    return side
