"""One meta step: where it looks from, where validation pulls, and what that says of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.config.mgr import MGRConfig

from .batches import Fitted, PseudoBatch
from .copies import Copies, Running, preconditioned
from .folds import Folds
from .hypergradient import (
    SecondOrder,
    directional,
    exact,
    finite_difference,
    gradient,
    leaf_weights,
    moved,
    norm,
)
from .losses import ImageLosses
from .passes import Passes, Weights

_FISHER_DECAY = 0.95


class MetaStep:
    """Derivatives of a validation loss to generated images, all computed in the weights' own type.

    Under bfloat16 (`passes.narrow`) only the images are made in it and the copies trained in it. In a
    ResNet-20 with random weights, gradients of the two losses in bfloat16 brought the cosine of the
    hypergradient to that in float32 from 0.88 (images alone) to 0.77, and a finite difference's to 0.3.

    Args:
        passes: The network.
        losses: A loss for each generated image.
        folds: Real images.
        config: How it is done.
        fitted: How images in [0, 1] become the network's input.
    """

    def __init__(
        self,
        passes: Passes,
        losses: ImageLosses,
        folds: Folds,
        config: MGRConfig,
        fitted: Fitted,
    ) -> None:
        self.passes, self.losses, self.folds = passes, losses, folds
        self.config, self.fitted = config, fitted
        self._adam: torch.optim.Optimizer | None = None
        self._average = None if config.average is None else Running(config.average)
        self._fisher = None if config.damping is None else Running(_FISHER_DECAY)
        own = passes.weights()
        self.copies = Copies(own, folds.folds, config.unroll_lr) if config.copies else None
        self._device = next(iter(own.values())).device
        self._draw = torch.Generator().manual_seed(0)
        self._taken = 0

    def optimizer(self, finder: nn.Module) -> torch.optim.Optimizer:
        """Return the finder's optimiser."""
        if self._adam is None:
            self._adam = torch.optim.Adam(finder.parameters(), lr=self.config.finder_lr)
        return self._adam

    def follow(self, made: PseudoBatch) -> None:
        """Take part in a step of training: move the average and the copies.

        Args:
            made: The step's generated images.
        """
        if self._average is not None:
            self._average.update(self.passes.weights())
        if self.copies is None:
            return
        self._draw.manual_seed(self._taken)
        self._taken += 1
        real = [self._real(k, len(made.clean), self._draw)[0] for k in range(self.folds.folds)]

        def loss(fold: int, weights: Weights) -> Tensor:
            x, y = real[fold]
            base = F.cross_entropy(self.passes(x, weights).logits, y)
            return base + self.config.weight * self._inner(made)(weights, made.clean, made.strong)

        self.copies.step(loss)

    def slopes(
        self, made: PseudoBatch, fold: int, draw: torch.Generator
    ) -> tuple[list[Tensor], dict[str, float]]:
        """Return dL_val/d clean and dL_val/d strong after one step of training, and what to log.

        Args:
            made: Generated images.
            fold: The fold that validates.
            draw: Which real images.
        """
        with self.passes.wide():
            return self._slopes(made, fold, draw)

    def _slopes(
        self, made: PseudoBatch, fold: int, draw: torch.Generator
    ) -> tuple[list[Tensor], dict[str, float]]:
        inner = self._inner(made)
        images = (made.clean, made.strong)
        second = None
        if self.config.hypergradient == "exact" and self._average is None:
            # One graph gives the step ahead and, along the validation gradient, the second derivative.
            second = SecondOrder(inner, self._copy(fold), images)
        own = None if second is None else second.gradient()
        weights, direction, row = self._direction(made, fold, draw, ahead=True, inner=own)
        if self._average is not None and self._average.mean:
            weights = {n: self._average.mean[n] for n in weights}
        if second is not None:
            slopes = second.along(direction)
        elif self.config.hypergradient == "exact":
            slopes = exact(inner, weights, direction, images)
        else:
            slopes = finite_difference(
                inner, weights, direction, images, epsilon=self.config.epsilon
            )
        factor = -self.config.unroll_lr * self.config.weight
        return [factor * s for s in slopes], row

    def scores(
        self, made: PseudoBatch, views: Sequence[Tensor], fold: int, draw: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Return how much a step on each image lowers the validation loss, [b], and what to log.

        Args:
            made: Candidates.
            views: Strong views of them; the score is the mean over these.
            fold: The fold that validates.
            draw: Which real images.
        """
        with self.passes.wide():
            return self._scores(made, views, fold, draw)

    def _scores(
        self, made: PseudoBatch, views: Sequence[Tensor], fold: int, draw: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        weights, direction, row = self._direction(made, fold, draw, ahead=False)
        labels = made.labels.to(self._device)
        total = torch.zeros(len(made.clean), device=self._device)
        for strong in views:
            parts = []
            for rows in torch.arange(len(total)).split(256):
                clean, other, y = made.clean[rows], strong[rows], labels[rows]
                fed = (self.fitted.normalise(clean), self.fitted.normalise(other), y)
                parts.append(directional(lambda w, f=fed: self.losses(w, *f), weights, direction))
            total += torch.cat(parts)
        return total / len(views), row

    def _direction(
        self,
        made: PseudoBatch,
        fold: int,
        draw: torch.Generator,
        *,
        ahead: bool,
        inner: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
        """Return the weights, the validation gradient at them or a step ahead, and what to log.

        `inner` is the gradient of the loss on generated images where it is known.
        """
        config = self.config
        weights = leaf_weights(self._copy(fold))
        (x, y), _ = self._real(fold, len(made.clean), draw)
        point: dict[str, Tensor] = {n: w.detach() for n, w in weights.items()}
        if ahead or self._fisher is not None:
            if inner is None:
                value = self._inner(made)(weights, made.clean, made.strong)
                inner = gradient(value, weights)
            if self._fisher is not None:
                self._fisher.update({n: s.square() for n, s in inner.items()})
            if ahead:
                base = gradient(F.cross_entropy(self.passes(x, weights).logits, y), weights)
                step = {n: base[n] + config.weight * inner[n] for n in base}
                point = moved(weights, step, -config.unroll_lr)
        leaves = leaf_weights(point)
        held = [
            self._real(fold, len(made.clean), draw)[1] for _ in range(config.validation_batches)
        ]
        value = torch.stack([F.cross_entropy(self.passes(a, leaves).logits, b) for a, b in held])
        direction = gradient(value.mean(), leaves)
        row = {
            "validation_loss": float(value.detach().mean()),
            "validation_gradient": norm(direction),
        }
        if self._fisher is not None and config.damping is not None:
            direction = preconditioned(direction, self._fisher.mean, config.damping)
        return {n: w.detach() for n, w in weights.items()}, direction, row

    def _copy(self, fold: int) -> dict[str, Tensor]:
        if self.copies is None:
            return self.passes.weights()
        return self.copies.weights[fold % self.folds.folds]

    def _inner(self, made: PseudoBatch) -> Any:
        labels = made.labels.to(self._device)

        def mean(weights: Weights, clean: Tensor, strong: Tensor) -> Tensor:
            fed = (self.fitted.normalise(clean), self.fitted.normalise(strong))
            return self.losses(weights, *fed, labels).mean()

        return mean

    def _real(
        self, fold: int, n: int, draw: torch.Generator
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return a training and a validation batch at a fold, as the network takes them."""
        batches = []
        for images, labels in (
            self.folds.train(fold, n, draw),
            self.folds.validation(fold, n, draw),
        ):
            fed = self.fitted.normalise(images.to(self._device))
            batches.append((fed, labels.to(self._device)))
        return batches[0], batches[1]

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the finder's optimiser, of averages and copies."""
        return {
            "adam": None if self._adam is None else self._adam.state_dict(),
            "average": None if self._average is None else self._average.state_dict(),
            "fisher": None if self._fisher is None else self._fisher.state_dict(),
            "copies": None if self.copies is None else self.copies.state_dict(),
            "taken": self._taken,
        }

    def load_state_dict(self, state: Mapping[str, Any], finder: nn.Module) -> None:
        """Restore what `state_dict` returned."""
        own = self.passes.weights()
        if state["adam"] is not None:
            self.optimizer(finder).load_state_dict(state["adam"])
        if self._average is not None:
            self._average.load_state_dict(state["average"], own)
        if self._fisher is not None:
            self._fisher.load_state_dict(state["fisher"], own)
        if self.copies is not None:
            self.copies.load_state_dict(state["copies"])
        self._taken = int(state["taken"])
