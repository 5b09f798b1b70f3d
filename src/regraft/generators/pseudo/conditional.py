"""Pseudo conditional sampling: what a source classifier says of target images tells what to generate.

    q = softmax(C(x) / temperature),    x' = G(z, q)

The classifier is run once for each target image; its probabilities are kept.

References:
    Yamaguchi et al., "Transfer learning with pre-trained conditional generative models", 2022
    (arXiv 2204.12833).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.data import ImageSet
from regraft.errors import InputError
from regraft.generators.sources import Source
from regraft.generators.sources.source import DRAWN
from regraft.streams import Counter

Conditions = Literal["soft", "hard", "uniform"]
CONDITIONS: tuple[Conditions, ...] = ("soft", "hard", "uniform")


def conditions(
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    classes: int,
    *,
    kind: Conditions = "soft",
    temperature: float = 1.0,
    batch_size: int = 256,
) -> Tensor:
    """Return q for each image, float32 [n, classes].

    Args:
        classifier: Images as it takes them -> logits [n, classes], in evaluation mode.
        images: [n, C, H, W], as the classifier takes them.
        classes: Number of classes of the generator.
        kind: `soft` probabilities; `hard`, one-hot at the largest; or `uniform`, which uses no
            classifier.
        temperature: What logits are divided by; towards 0 it is `hard`, far above 1 `uniform`.
        batch_size: Images at once.

    Raises:
        InputError: No image, an unknown kind, a temperature that is not above 0, a classifier of
            another number of classes, or logits that are not finite.
    """
    if kind not in CONDITIONS:
        raise InputError(f"conditions={kind!r}: expected one of {', '.join(CONDITIONS)}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature={temperature}: expected a finite number above 0")
    if len(images) == 0:
        raise InputError("there are no target images to take conditions from: give one at least")
    if kind == "uniform":
        return torch.full((len(images), classes), 1 / classes)
    with torch.no_grad():
        logits = torch.cat([classifier(part).float().cpu() for part in images.split(batch_size)])
    if logits.shape != (len(images), classes):
        raise InputError(
            f"the source classifier gives {tuple(logits.shape[1:])} numbers an image and the generator "
            f"has {classes} classes: both must be of the same labels, in the same order"
        )
    if not logits.isfinite().all():
        raise InputError(
            "the source classifier gives numbers that are not finite: look at its weights and at how "
            "the images are prepared for it"
        )
    if kind == "hard":
        return F.one_hot(logits.argmax(1), classes).float()
    return (logits / temperature).softmax(1)


class Unlabelled(Protocol):
    """Images without labels: image i of a seed is the same whatever the batch it is taken in."""

    def take(self, first: int, n: int) -> Tensor:
        """Return images `first` to `first + n`, float32 [n, C, H, W] in [0, 1]."""


class PseudoSamples:
    """Images that a source makes for conditions: of each a random row of `probabilities`, new latents.

    Args:
        source: The generator.
        probabilities: q of each target image, float [N, K].
        seed: The seed.
    """

    def __init__(self, source: Source, probabilities: Tensor, *, seed: int) -> None:
        self.source, self.probabilities, self.seed = source, probabilities, seed

    @property
    def fallback(self) -> str:
        """What is done instead of what the source cannot do, a sentence; "" where it can do all."""
        mixed = len(self.probabilities) > 1 and bool((self.probabilities.amax(1) < 1).any())
        return DRAWN if mixed and not self.source.soft_conditions else ""

    def take(self, first: int, n: int) -> Tensor:
        """Return images; see `Unlabelled.take`."""
        counter = Counter(self.seed, "pseudo", first)
        unit = counter.uniform("pseudo/rows", first, n, 1)[:, 0].double()
        count = len(self.probabilities)
        rows = (unit * count).long().clamp(max=count - 1)
        return self.source.sample(n, probabilities=self.probabilities[rows], generator=counter)


class ImagePool:
    """Images that are there already: a folder's, or a bank's; each pass in a new order.

    Args:
        images: The images; their labels are not looked at.
        seed: Seed of the orders.
        device: Where batches go.

    Raises:
        InputError: There is no image.
    """

    def __init__(
        self, images: ImageSet | Tensor, *, seed: int, device: torch.device | str | None = None
    ) -> None:
        self.images = images.images if isinstance(images, ImageSet) else images
        if len(self.images) == 0:
            raise InputError("there are no images without labels: give one at least")
        self.seed, self.device = seed, torch.device(device or "cpu")
        self._orders: dict[int, Tensor] = {}

    def take(self, first: int, n: int) -> Tensor:
        """Return images; see `Unlabelled.take`."""
        count = len(self.images)
        at = torch.arange(first, first + n)
        rows = torch.empty(n, dtype=torch.int64)
        for number in (at // count).unique().tolist():
            mine = at // count == number
            rows[mine] = self._order(number)[at[mine] % count]
        return self.images[rows].to(self.device).float() / 255

    def _order(self, number: int) -> Tensor:
        from regraft import streams

        if number not in self._orders:
            self._orders = {
                number: streams.permutation(self.seed, "pool", number, len(self.images))
            }
        return self._orders[number]
