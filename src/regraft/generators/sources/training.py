"""Training of a small conditional generator on labelled images, with an average of its weights."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from regraft.data import ImageSet
from regraft.errors import DivergenceError, InputError
from regraft.streams import Counter
from regraft.train import Average

from .networks import ConditionalVAE, RectifiedFlow


class GeneratorTraining:
    """A training under way; follows `regraft.protocols.Stepper`.

    Adam under a cosine to a tenth. What a step draws is a function of the seed and its number.

    Args:
        generator: What to train, in place.
        images: The labelled images.
        steps: Optimiser steps.
        batch_size: Images a step.
        lr: Learning rate at the start.
        decay: Largest decay of the average of the weights, which is what is left at the end.
        seed: Seed of everything that is drawn.

    Raises:
        InputError: Images of another shape or number of classes, or a setting out of its range.
    """

    def __init__(
        self,
        generator: ConditionalVAE | RectifiedFlow,
        images: ImageSet,
        *,
        steps: int,
        batch_size: int = 128,
        lr: float = 1e-3,
        decay: float = 0.995,
        seed: int = 0,
    ) -> None:
        shape = tuple(images.images.shape[1:])
        if shape != generator.image_shape or images.num_classes != generator.num_classes:
            raise InputError(
                f"{images.num_classes} classes of images of {shape}: the generator is for "
                f"{generator.num_classes} of {generator.image_shape}"
            )
        if steps < 1 or batch_size < 1 or len(images) == 0:
            raise InputError(
                f"steps={steps}, batch_size={batch_size}, {len(images)} images: expected at least 1 each"
            )
        self.generator, self.images = generator, images
        self.steps, self.batch_size, self.at, self.seed = steps, batch_size, 0, seed
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=lr)
        self.average = Average(generator, decay=decay)
        self._lr = lr
        self.newest = {"loss": math.nan}

    @property
    def done(self) -> bool:
        """Whether all steps are taken."""
        return self.at >= self.steps

    def step(self) -> None:
        """Take one optimiser step.

        Raises:
            DivergenceError: The loss is not finite.
        """
        first, n = self.at * self.batch_size, self.batch_size
        counter, device = Counter(self.seed, "generator"), next(self.generator.parameters()).device
        unit = counter.uniform("rows", first, n, 1)[:, 0].double()
        rows = (unit * len(self.images)).long().clamp(max=len(self.images) - 1)
        x = self.images.images[rows].to(device).float() / 255
        q = F.one_hot(self.images.labels[rows], self.images.num_classes).float().to(device)
        noise = counter.normal("noise", first, n, math.prod(self.generator.noise_shape)).to(device)
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr * (0.55 + 0.45 * math.cos(math.pi * self.at / self.steps))
        loss = self.generator.train().loss(x, q, noise)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergenceError(
                f"the generator's loss became {value} at step {self.at + 1}: lower its learning rate "
                f"(now {self._lr:g})"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.average.step()
        self.at += 1
        self.newest = {"loss": value}

    def finish(self) -> None:
        """Leave the averaged weights in the generator."""
        self.generator.load_state_dict(self.average.averaged())

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on."""
        return {
            "at": self.at,
            "generator": self.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.at = int(state["at"])
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
