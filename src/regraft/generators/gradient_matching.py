"""Gradient matching: how far the gradients of synthetic images are from those of real ones.

References:
    Zhao, Mopuri and Bilen, "Dataset condensation with gradient matching", ICLR 2021 (section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap


def matched(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters whose gradients are matched: weights; no biases and norm vectors."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad and p.ndim > 1}


def distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return the sum over classes, layers and output rows of 1 - cos(left row, right row).

    A row is what leads to one output unit or channel. A row of zeros, as of a unit that no image
    turns on, is at distance 1 from every other and has no gradient.

    Args:
        left: One tensor [K, out, ...] for each layer.
        right: Tensors of the same shapes.
    """
    total = torch.zeros((), dtype=left[0].dtype, device=left[0].device)
    for a, b in zip(left, right, strict=True):
        total = total + (1 - F.cosine_similarity(a.flatten(2), b.flatten(2), dim=2)).sum()
    return total


def real_gradients(network: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of the mean cross-entropy of each class's images.

    Args:
        network: The network, in evaluation mode.
        batches: The images of class k at place k, [b_k, C, H, W]; sizes may differ.

    Returns:
        One tensor [K, *weight.shape] for each matched weight.
    """
    weights = list(matched(network).values())
    gradients = []
    for label, images in enumerate(batches):
        loss = -network(images).log_softmax(1)[:, label].mean()
        gradients.append(torch.autograd.grad(loss, weights))
    return [torch.stack(layer) for layer in zip(*gradients, strict=True)]


def synthetic_gradients(
    network: nn.Module, images: Tensor, *, vectorise: bool = True
) -> list[Tensor]:
    """Return the same for synthetic images, differentiable with respect to them.

    Args:
        network: The network, in evaluation mode.
        images: [K, n, C, H, W], n of every class.
        vectorise: All classes at once by `torch.func.vmap`, else one after the other.

    Returns:
        One tensor [K, *weight.shape] for each matched weight.
    """
    if not vectorise:
        weights = list(matched(network).values())
        layers = []
        for label, own in enumerate(images):
            loss = -network(own).log_softmax(1)[:, label].mean()
            layers.append(torch.autograd.grad(loss, weights, create_graph=True))
        return [torch.stack(layer) for layer in zip(*layers, strict=True)]
    names = matched(network).keys()
    tensors = {k: p.detach() for k, p in network.named_parameters()} | dict(network.named_buffers())
    moved = {k: tensors.pop(k) for k in names}

    def loss_of(weights: dict[str, Tensor], own: Tensor, target: Tensor) -> Tensor:
        output = functional_call(network, {**tensors, **weights}, (own,))
        return -(output.log_softmax(1) @ target).mean()

    targets = torch.eye(len(images), dtype=images.dtype, device=images.device)
    per_class: Callable[..., dict[str, Tensor]] = vmap(grad(loss_of), in_dims=(None, 0, 0))
    gradients = per_class(moved, images, targets)
    return [gradients[k] for k in names]
