"""Real images in the place of generated ones: the controls that need no generator."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.generators.sources import Source

from .folds import unit_images


class RealSource(Source):
    """Labelled real images as a source: image floor(u n_y) of class y, u uniform from a normal latent.

    Consistency on it is consistency without synthesis; cross-entropy on the images that a generator was
    trained on is the control for the generator.

    Args:
        images: uint8 or floats in [0, 1], [n, C, H, W], or a `FileSet`.
        labels: int64 [n].
        classes: Number of classes.
        device: Where images are returned.

    Raises:
        InputError: A class without images.
    """

    def __init__(
        self,
        images: Any,
        labels: Tensor,
        classes: int,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.device = torch.device(device or "cpu")
        self.classes, self.latent_shape = classes, (1,)
        one = images[0]
        self.image_shape = (one.shape[0], one.shape[1], one.shape[2])
        self._images, self._labels = images, labels.cpu()
        self._counts = torch.bincount(self._labels, minlength=classes)
        if len(self._counts) > classes or int(self._counts.min()) < 1:
            raise InputError(
                f"the real images have {int((self._counts > 0).sum())} of {classes} classes: give some "
                "of each"
            )
        self._order = self._labels.argsort(stable=True)
        self._first = self._counts.cumsum(0) - self._counts

    def generate(self, latents: Tensor, condition: Tensor) -> Tensor:
        """Return images; see `Source.generate`."""
        unit = torch.special.ndtr(latents.flatten().double().cpu())
        labels = condition.cpu()
        place = (unit * self._counts[labels]).long()
        place = torch.minimum(place, self._counts[labels] - 1)
        return unit_images(self._images, self._order[self._first[labels] + place]).to(self.device)

    def digest(self) -> str:
        """Return 16 hex digits of labels and, where they are in memory, of images."""
        hashed = hashlib.blake2b(self._labels.numpy().tobytes(), digest_size=8)
        if isinstance(self._images, Tensor):
            hashed.update(self._images.detach().cpu().contiguous().numpy().tobytes())
        else:
            hashed.update(str(math.prod(self.image_shape) * len(self._labels)).encode())
        return hashed.hexdigest()
