"""Generated images as a network takes them, views that are replayed, and a backward pass in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.data.views import checked
from regraft.errors import InputError
from regraft.streams import seeded


class ReplayedViews(Protocol):
    """Random views that are drawn once and applied as often as one likes, as `regraft.data.Views`."""

    def draw(self, n: int, generator: torch.Generator) -> Any:
        """Draw what happens to `n` images."""

    def apply(self, images: Tensor, record: Any) -> Tensor:
        """Return views [n, C, H, W] of images of that shape."""


class SeededViews:
    """Somebody's own transform of a batch, drawn from torch's global generator, made replayable.

    Each draw is a seed. The transform has to be differentiable: one that cuts the graph is refused when it
    does so, as library transforms do for some of their draws only.

    Args:
        transform: Images [n, C, H, W] in [0, 1] -> images of that shape.
        name: What to call it in messages.
    """

    def __init__(self, transform: Callable[[Tensor], Tensor], *, name: str = "") -> None:
        self._transform = checked(transform, name=name)

    def draw(self, n: int, generator: torch.Generator) -> int:
        """Return a seed."""
        return int(torch.randint(2**62, (), generator=generator))

    def apply(self, images: Tensor, record: int) -> Tensor:
        """Return the views of a seed.

        Raises:
            InputError: The transform changes the shape, or passes no gradient on.
        """
        with seeded(record, images.device):
            return self._transform(images)


@dataclass(frozen=True, eq=False)
class PseudoBatch:
    """Generated images in [0, 1], at the network's size, and what they were made of.

    Attributes:
        latents: [b, ...].
        labels: int64 [b].
        record: What `views.draw` returned.
        clean: [b, C, H, W].
        strong: Their views.
    """

    latents: Tensor
    labels: Tensor
    record: Any
    clean: Tensor
    strong: Tensor


@dataclass(frozen=True)
class Fitted:
    """Brings generated images to the channels, the size and the scale of a network's input.

    Attributes:
        channels: 1 or 3.
        size: Height and width in pixels.
        mean: Mean of each channel that is subtracted from pixels in [0, 1].
        std: Standard deviation of each channel that they are divided by.
    """

    channels: int
    size: tuple[int, int]
    mean: Sequence[float]
    std: Sequence[float]

    def fit(self, images: Tensor) -> Tensor:
        """Return images [b, C, H, W] in [0, 1]; differentiable."""
        if images.shape[1] != self.channels:
            if self.channels == 3:
                images = images[:, :1].expand(-1, 3, -1, -1)
            else:
                weights = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
                images = (images[:, :3] * weights).sum(1, keepdim=True)
        if images.shape[2:] != self.size:
            images = F.interpolate(
                images, self.size, mode="bilinear", antialias=True, align_corners=False
            )
        return images

    def normalise(self, images: Tensor) -> Tensor:
        """Return (x - mean) / std."""
        shape = (1, -1, 1, 1)
        mean, std = images.new_tensor(self.mean), images.new_tensor(self.std)
        return (images - mean.view(shape)) / std.view(shape)


def push_back(
    batch: PseudoBatch,
    slopes: Sequence[Tensor],
    views: ReplayedViews,
    make: Callable[[slice], Tensor],
    parameters: Iterable[Tensor],
    *,
    chunk: int | None = None,
) -> list[Tensor]:
    """Return the gradient of parameters behind generated images, whose own gradients are known.

    Transform and generator run anew with a graph, the generator on `chunk` images at a time, so that its
    memory does not grow with the batch.

    Args:
        batch: The images.
        slopes: d/d clean and d/d strong, [b, C, H, W] each.
        views: What made strong of clean.
        make: Rows -> clean images of those rows, with a graph to the parameters.
        parameters: The parameters.
        chunk: Images at a time, or None for all.

    Raises:
        InputError: The transform or the generator passes no gradient on.
    """
    clean, strong = slopes
    leaf = batch.clean.detach().requires_grad_()
    again = views.apply(leaf, batch.record)
    if not again.requires_grad:
        raise InputError(
            "the views cut the graph: their result has no gradient to the images; use regraft.data.views, "
            "whose operations are differentiable, or choose samples from a pool with select='gradient'"
        )
    (through,) = torch.autograd.grad(again, leaf, strong, allow_unused=True)
    if through is None or (bool(strong.any()) and not bool(through.any())):
        raise InputError(
            "the views pass no gradient on to the images (it is zero): use regraft.data.views, whose "
            "operations are differentiable, or choose samples from a pool with select='gradient'"
        )
    whole = clean + through
    wanted = list(parameters)
    total = [torch.zeros_like(p) for p in wanted]
    size = len(whole)
    for start in range(0, size, chunk or size):
        rows = slice(start, min(start + (chunk or size), size))
        images = make(rows)
        if not images.requires_grad:
            raise InputError(
                "the source passes no gradient on to its latents: choose samples from a pool with "
                "select='gradient' or 'entropy'"
            )
        parts = torch.autograd.grad(images, wanted, whole[rows], allow_unused=True)
        for sum_, part in zip(total, parts, strict=True):
            if part is not None:
                sum_ += part
    return total
