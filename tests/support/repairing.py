"""Networks that are merged, and batches to take their statistics from."""

import torch
from torch import nn

from regraft.models import MLP, ConvN, ConvSmall


def batches(shape, sizes=(7, 7, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *shape, generator=generator) + 0.3 for n in sizes]


def network(kind, seed=0):
    torch.manual_seed(seed)
    if kind == "mlp":
        return MLP(12, [9, 8, 7], 3)
    if kind == "conv":
        return ConvN(2, 3, channels=2, image_size=6, width=0.1)
    if kind == "norm":
        return ConvSmall(3, channels=2, image_size=6, width=0.5)
    if kind == "mixed":
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(),
            nn.ConvTranspose2d(6, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3),
        )  # fmt: skip
    if kind == "pair":
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    raise ValueError(kind)
