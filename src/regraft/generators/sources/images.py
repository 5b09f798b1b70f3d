"""Labelled images as a `Source`: every sample is one of them."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from regraft.data import ImageSet
from regraft.errors import InputError
from regraft.streams import Counter

from .source import Source


class ImageSource(Source):
    """A folder or set of images in the place of a generator, which real source data are too.

    The latent of a sample is one number in (0, 1), the place of the image among those of its class.
    Neither mixed labels nor gradients mean anything here.

    Args:
        images: The images.
        device: Where samples go.

    Raises:
        InputError: A class without images.
    """

    latent_shape = (1,)
    deterministic = True

    def __init__(self, images: ImageSet, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.device = torch.device(device or "cpu")
        self.classes = images.num_classes
        channels, height, width = images.images.shape[1:]
        self.image_shape = (channels, height, width)
        self._images = images.images
        self._counts = images.labels.bincount(minlength=self.classes)
        if bool((self._counts == 0).any()):
            empty = int((self._counts == 0).nonzero()[0])
            raise InputError(
                f"class {empty} of {self.classes} has no images: leave it out, or add some of it"
            )
        self._order = images.labels.argsort(stable=True)
        self._starts = self._counts.cumsum(0) - self._counts
        self.notes.append(f"{len(images)} images of {self.classes} classes; no mixed labels")

    def _latents(self, source: Counter, first: int, n: int) -> Tensor:
        return source.uniform("source/latents", first, n, 1)

    def generate(self, latents: Tensor, condition: Tensor) -> Tensor:
        """Return the images that latents and labels name; see `Source.generate`."""
        labels, place = condition.cpu(), latents[:, 0].double().cpu()
        if not bool(((place >= 0) & (place <= 1)).all()):
            raise InputError(
                "the latents of a set of images are numbers from 0 to 1, places in a class"
            )
        inside = (place * self._counts[labels]).long().minimum(self._counts[labels] - 1)
        rows = self._order[self._starts[labels] + inside]
        return self._images[rows].to(self.device).float() / 255

    def digest(self) -> str:
        """Return 16 hex digits of the images and their classes."""
        hashed = hashlib.blake2b(self._order.numpy().tobytes(), digest_size=8)
        hashed.update(self._counts.numpy().tobytes())
        hashed.update(self._images.contiguous().numpy().data)
        return hashed.hexdigest()
