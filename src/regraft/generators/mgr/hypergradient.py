"""The gradient of a validation loss, one step of training ahead, to the images the step is taken on.

    theta' = theta - eta d/dtheta [L(theta) + lambda R(theta; x, u)],    v = dL_val/dtheta'
    dL_val(theta')/d(x, u) = -eta lambda d/d(x, u) <dR/dtheta, v>

R alone depends on the generated images x and their views u, so that only R needs a second derivative,
and only to x and u: what made them, transform, generator and finder, has an ordinary backward pass
afterwards and is never part of the second-order graph. Convolutions and BatchNorms have second derivatives
of their own there (`twice.py`).

References:
    Yamaguchi et al., "Regularizing neural networks with meta-learning generative models", NeurIPS 2023
    (meta pseudo sampling). Liu et al., "DARTS", ICLR 2019, section 2.3 (the finite difference).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .passes import Weights
from .twice import Twice

Inner = Callable[..., Tensor]
"""(weights, *images) -> the scalar R."""


def gradient(loss: Tensor, weights: Weights) -> dict[str, Tensor]:
    """Return d loss / d weights; zeros for weights that the loss does not depend on."""
    names = list(weights)
    slopes = torch.autograd.grad(loss, [weights[n] for n in names], allow_unused=True)
    return {
        n: torch.zeros_like(weights[n]) if s is None else s
        for n, s in zip(names, slopes, strict=True)
    }


def leaf_weights(weights: Weights) -> dict[str, Tensor]:
    """Return the weights as leaves of a graph of their own."""
    return {n: w.detach().requires_grad_() for n, w in weights.items()}


def moved(weights: Weights, by: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Return weights + factor * by, without a graph."""
    return {n: w.detach() + factor * by[n] for n, w in weights.items()}


def norm(direction: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm of all tensors together."""
    return float(torch.nn.utils.get_total_norm(list(direction.values())))


class SecondOrder:
    """R's gradient at some weights, with the graph that a second derivative needs.

    The gradient is of use by itself, for the step of training that the validation loss is ahead of.

    Args:
        inner: R.
        weights: Where the derivatives are taken.
        images: What R is called with, [b, C, H, W] each.
    """

    def __init__(self, inner: Inner, weights: Weights, images: Sequence[Tensor]) -> None:
        self._leaves = [x.detach().requires_grad_() for x in images]
        own = leaf_weights(weights)
        with Twice():
            value = inner(own, *self._leaves)
        slopes = torch.autograd.grad(
            value, list(own.values()), create_graph=True, allow_unused=True
        )
        self._slopes = dict(zip(own, slopes, strict=True))
        self._like = own

    def gradient(self) -> dict[str, Tensor]:
        """Return dR/dweights, without a graph; zeros for weights that R does not depend on."""
        return {
            n: torch.zeros_like(self._like[n]) if s is None else s.detach()
            for n, s in self._slopes.items()
        }

    def along(self, direction: Mapping[str, Tensor]) -> list[Tensor]:
        """Return d/d image <dR/dweights, direction> for each tensor of images, once."""
        parts = [
            (s * direction[n]).sum()
            for n, s in self._slopes.items()
            if s is not None and s.requires_grad
        ]
        if not parts:
            return [torch.zeros_like(x) for x in self._leaves]
        total = torch.stack(parts).sum()
        second = torch.autograd.grad(total, self._leaves, allow_unused=True)
        return [
            torch.zeros_like(x) if s is None else s.detach()
            for x, s in zip(self._leaves, second, strict=True)
        ]


def exact(
    inner: Inner, weights: Weights, direction: Mapping[str, Tensor], images: Sequence[Tensor]
) -> list[Tensor]:
    """Return d/d image <dR/dweights, direction> for each tensor of images.

    Args:
        inner: R.
        weights: Where the derivative is taken.
        direction: v, by the names of weights.
        images: What R is called with, [b, C, H, W] each.
    """
    return SecondOrder(inner, weights, images).along(direction)


def finite_difference(
    inner: Inner,
    weights: Weights,
    direction: Mapping[str, Tensor],
    images: Sequence[Tensor],
    *,
    epsilon: float = 0.01,
) -> list[Tensor]:
    """Return the same by (dR/dimage at theta + h v - that at theta - h v) / 2h with h = epsilon / ||v||.

    With networks that have kinks (ReLU) this is far from the exact value at the usual epsilon; the
    arguments are those of `exact`. Both sides draw the same random numbers (dropout), those of one call.
    """
    length = norm(direction)
    if length == 0.0:
        return [torch.zeros_like(x) for x in images]
    step = epsilon / length

    def side(by: float) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in images]
        value = inner(moved(weights, direction, by), *leaves)
        slopes = torch.autograd.grad(value, leaves, allow_unused=True)
        return [
            torch.zeros_like(x) if s is None else s for x, s in zip(leaves, slopes, strict=True)
        ]

    # Both sides drop the same units: the difference of two draws, over 2h, would be noise.
    tensors = (*weights.values(), *images)
    devices = {t.device.index for t in tensors if t.is_cuda}
    with torch.random.fork_rng(sorted(devices)):
        plus = side(step)
    minus = side(-step)
    return [(p - m) / (2 * step) for p, m in zip(plus, minus, strict=True)]


def directional(
    losses: Callable[[Weights], Tensor], weights: Weights, direction: Mapping[str, Tensor]
) -> Tensor:
    """Return <d loss_i / d weights, direction> of each image, [b], in one forward-mode pass.

    A step of training along -d loss_i lowers the validation loss by as much, to first order, if
    `direction` is its gradient: the larger, the better.

    Args:
        losses: Weights -> a loss for each image, [b].
        weights: Where the derivative is taken.
        direction: v, by the names of weights.
    """
    own = {n: w.detach() for n, w in weights.items()}
    tangents = {n: direction[n].detach() for n in own}
    with warnings.catch_warnings(), torch.no_grad():
        # torch scripts its rules at their first use, and warns of it itself.
        warnings.simplefilter("ignore", FutureWarning)
        scores = torch.func.jvp(losses, (own,), (tangents,))[1]
    return scores.detach()
