"""A small conditional generator and network for tests of what is trained on generated images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.data import ImageSet
from regraft.generators.mgr import MGR, MGRConfig
from regraft.generators.sources import ImageSource, Source

SIDE, LATENT, CLASSES = 6, 3, 3


class SmoothSource(Source):
    """sigmoid(A z + b_y) as images of 6 x 6 pixels, in any dtype; an image of each class if `still`."""

    def __init__(self, *, dtype: torch.dtype = torch.float64, still: bool = False, seed: int = 0):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.classes, self.latent_shape, self.image_shape = CLASSES, (LATENT,), (1, SIDE, SIDE)
        self.latent_gradients = True
        size = SIDE * SIDE
        self.map = torch.randn(LATENT, size, generator=draw, dtype=dtype) * (0.01 if still else 1)
        self.bias = torch.randn(CLASSES, size, generator=draw, dtype=dtype) * 2
        self.most: list[int] = []

    def latents(self, n, generator):
        return super().latents(n, generator).to(self.map.dtype)

    def generate(self, latents: Tensor, condition: Tensor) -> Tensor:
        self.most.append(len(latents))
        flat = torch.sigmoid(latents @ self.map + self.bias[condition])
        return flat.view(-1, *self.image_shape)


class SmoothViews:
    """Brightness of each image and a mirrored half, differentiable."""

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, 1, 1, 1, generator=generator, dtype=torch.float64) + 0.5

    def apply(self, images: Tensor, record: Tensor) -> Tensor:
        factor = record.to(images.dtype)
        return (images * factor + 0.3 * images.flip(3).square()) / 2


def small_net(
    *, norm: str = "none", dtype: torch.dtype = torch.float64, seed: int = 0
) -> nn.Module:
    """Return a network of two convolutions with SiLU, and a classifier `fc`."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1)]
    if norm == "batch":
        layers.append(nn.BatchNorm2d(4))
    layers += [nn.SiLU(), nn.Conv2d(4, 5, 3, stride=2), nn.SiLU(), nn.Flatten()]
    net = nn.Sequential()
    net.add_module("body", nn.Sequential(*layers))
    net.add_module("fc", nn.Linear(20, CLASSES))
    return net.to(dtype)


def real_images(
    n: int = 30, *, dtype: torch.dtype = torch.float64, seed: int = 1
) -> tuple[Tensor, Tensor]:
    """Return images in [0, 1] whose class is the row that is bright, and their labels."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    images = torch.rand(n, 1, SIDE, SIDE, generator=draw, dtype=dtype) * 0.5
    images[torch.arange(n), :, labels] += 0.5
    return images, labels


def cross_entropy(net: nn.Module, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(torch.func.functional_call(net, weights, (x,)), y)


class LinearSource(Source):
    """sigmoid(A z + b_y) as images of any shape, float32."""

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.classes, self.latent_shape, self.image_shape = classes, (LATENT,), shape
        self.latent_gradients = True
        size = shape[0] * shape[1] * shape[2]
        self.map = torch.randn(LATENT, size, generator=draw)
        self.bias = torch.randn(classes, size, generator=draw)

    def generate(self, latents: Tensor, condition: Tensor) -> Tensor:
        return torch.sigmoid(latents @ self.map + self.bias[condition]).view(-1, *self.image_shape)


def mgr_for(net: nn.Module, images: Tensor, labels: Tensor, classes: int) -> Any:
    """Return a prepared MGR whose finder moves fast, for images of any range."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    config = MGRConfig(every=2, finder_lr=0.1, folds=2)
    unit = images.sigmoid()
    return MGR(LinearSource(shape, classes), config).prepare(net, unit, labels, batch=6)


def made(net, seed=0, source=None, views=None, validation=None, still=False, **config) -> Any:
    """Return an MGR that is prepared on `real_images`."""
    source = source or SmoothSource(dtype=torch.float32, still=still)
    images, labels = real_images(dtype=torch.float32)
    mgr = MGR(source, MGRConfig(**config), views=views or SmoothViews(), seed=seed)
    return mgr.prepare(net, images, labels, mean=(0.2,), std=(0.5,), batch=8, validation=validation)


def net32(**options: Any) -> nn.Module:
    """Return `small_net` in float32."""
    return small_net(dtype=torch.float32, **options)


def real_source() -> ImageSource:
    """Return `real_images` as a source."""
    images, labels = real_images(dtype=torch.float32)
    return ImageSource(ImageSet((images * 255).round().to(torch.uint8), labels, CLASSES))
