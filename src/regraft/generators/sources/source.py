"""What a conditional generator is to this package: a source of labelled images.

Image i of a `Counter` is the same whatever the batch it is made in: its latents, its label and the
draw of its label from probabilities are functions of (seed, i) alone. What a source cannot do is said
beforehand by three attributes, and using it all the same is an error or a fallback that is written
down in `fallbacks`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from regraft.errors import InputError, RegraftError
from regraft.streams import Counter, counter

DRAWN = "soft labels: the label of each image was drawn from its probabilities"


class Source(ABC):
    """A conditional generator.

    A subclass sets the attributes and writes `generate`.

    Attributes:
        classes: Number of classes K.
        latent_shape: Shape of one latent.
        image_shape: Channels, height and width.
        soft_conditions: Class probabilities are a condition of their own, as mixed labels.
        latent_gradients: Images can be differentiated with respect to latents.
        deterministic: Equal latents and conditions give equal images.
        device: Where latents are expected and images are made.
        class_names: Names of the classes, where they are known.
        notes: What was learned about the generator, in sentences.
        fallbacks: What was done instead of what it cannot do: sentence -> number of images.
    """

    classes: int
    latent_shape: tuple[int, ...]
    image_shape: tuple[int, int, int]
    soft_conditions: bool = False
    latent_gradients: bool = False
    deterministic: bool = True

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.class_names: tuple[str, ...] = ()
        self.notes: list[str] = []
        self.fallbacks: dict[str, int] = {}

    @abstractmethod
    def generate(self, latents: Tensor, condition: Tensor) -> Tensor:
        """Return images [n, C, H, W] in [0, 1].

        Args:
            latents: [n, *latent_shape].
            condition: Labels, int64 [n], or probabilities, float [n, K], if `soft_conditions`.
        """

    def digest(self) -> str:
        """Return what tells whether the source still makes the same images."""
        raise NotImplementedError

    def latents(self, n: int, generator: Counter | torch.Generator) -> Tensor:
        """Draw latents: standard normal, float32 [n, *latent_shape]."""
        source = counter(generator)
        return self._latents(source, source.advance(n), n)

    def _latents(self, source: Counter, first: int, n: int) -> Tensor:
        size = math.prod(self.latent_shape)
        drawn = source.normal("source/latents", first, n, size)
        return drawn.view(n, *self.latent_shape).to(self.device)

    def sample(
        self,
        n: int,
        *,
        labels: Tensor | None = None,
        probabilities: Tensor | None = None,
        latents: Tensor | None = None,
        generator: Counter | torch.Generator | None = None,
    ) -> Tensor:
        """Make images.

        Without labels and probabilities the labels are uniform over the classes; `draw_labels` on an
        equal counter returns them.

        Args:
            n: Number of images.
            labels: int64 [n].
            probabilities: Class probabilities, float [n, K]. Without `soft_conditions` the label of
                each image is drawn from its own, and `fallbacks` counts it.
            latents: [n, *latent_shape]; drawn if missing.
            generator: What is drawn is drawn from here; a `Counter` gives the same images at any batch
                size.

        Returns:
            Float [n, C, H, W] in [0, 1], with a graph only to latents or probabilities that need one.

        Raises:
            InputError: Shapes that do not fit, labels that are no classes, both kinds of labels,
                nothing to draw from, or a gradient to latents that there is none to.
            RegraftError: The generator made numbers that are not finite.
        """
        if labels is not None and probabilities is not None:
            raise InputError("labels and probabilities exclude each other: give one of them")
        source = None if generator is None else counter(generator)
        first = 0 if source is None else source.advance(n)
        if probabilities is not None:
            _check_probabilities(probabilities, n, self.classes)
            if not self.soft_conditions:
                labels = self._drawn(source, first, probabilities)
                self.fallbacks[DRAWN] = self.fallbacks.get(DRAWN, 0) + n
        elif labels is None:
            labels = draw_labels(_needed(source, "labels"), first, n, self.classes)
        else:
            _check_labels(labels, n, self.classes)
        if latents is None:
            latents = self._latents(_needed(source, "latents"), first, n)
        elif latents.shape != (n, *self.latent_shape):
            raise InputError(
                f"latents of shape {tuple(latents.shape)}: this source takes {(n, *self.latent_shape)}"
            )
        if latents.requires_grad and not self.latent_gradients:
            raise InputError(
                "this source passes no gradients to its latents: choose samples by a bank and their "
                "scores instead"
            )
        condition = probabilities if labels is None or self._soft(probabilities) else labels
        condition = (labels if condition is None else condition).to(self.device)  # pyrefly: ignore
        learns = latents.requires_grad or condition.requires_grad
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            images = self.generate(latents.to(self.device), condition)
        return self._checked(images, n)

    def _soft(self, probabilities: Tensor | None) -> bool:
        return probabilities is not None and self.soft_conditions

    def _drawn(self, source: Counter | None, first: int, probabilities: Tensor) -> Tensor:
        unit = _needed(source, "labels").uniform("source/drawn", first, len(probabilities), 1)
        total = probabilities.detach().cpu().double().cumsum(1)
        return (unit.double() * total[:, -1:] >= total).sum(1).clamp(max=self.classes - 1)

    def _checked(self, images: Tensor, n: int) -> Tensor:
        if images.shape != (n, *self.image_shape):
            raise RegraftError(
                f"the generator made {tuple(images.shape)} instead of {(n, *self.image_shape)}"
            )
        if not images.isfinite().all():
            bad = int((~images.flatten(1).isfinite().all(1)).sum())
            raise RegraftError(
                f"{bad} of {n} generated images hold numbers that are not finite: look at the "
                "generator's weights, or use its bank without them"
            )
        return images


def draw_labels(source: Counter, first: int, n: int, classes: int) -> Tensor:
    """Return the uniform labels of images `first` to `first + n`, int64 [n]."""
    unit = source.uniform("source/labels", first, n, 1)[:, 0]
    return (unit.double() * classes).long().clamp(max=classes - 1)


def _needed(source: Counter | None, what: str) -> Counter:
    if source is None:
        raise InputError(f"generator is missing and there are no {what}: give one to draw from")
    return source


def _check_labels(labels: Tensor, n: int, classes: int) -> None:
    if labels.shape != (n,) or labels.is_floating_point():
        raise InputError(
            f"labels of shape {tuple(labels.shape)} and dtype {labels.dtype}: expected int64 [{n}]"
        )
    if n and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"labels from {int(labels.min())} to {int(labels.max())}: this source has the classes 0 to "
            f"{classes - 1}"
        )


def _check_probabilities(probabilities: Tensor, n: int, classes: int) -> None:
    if probabilities.shape != (n, classes) or not probabilities.is_floating_point():
        raise InputError(
            f"probabilities of shape {tuple(probabilities.shape)}: this source takes float "
            f"[{n}, {classes}], a number for each of its classes"
        )
    value = probabilities.detach()
    sums = value.sum(1)
    if not ((value >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)):
        raise InputError("probabilities are not: expected rows of numbers from 0 on that sum to 1")
