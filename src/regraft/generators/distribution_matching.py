"""Distribution matching: synthetic images whose mean embedding is that of real ones.

References:
    Zhao and Bilen, "Dataset condensation with distribution matching", WACV 2023 (equation 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import InputError


def embed(network: nn.Module, images: Tensor) -> Tensor:
    """Return what the network's classifier is given, [b, d].

    Networks that speak timm's protocol (`forward_features`, `forward_head(pre_logits=True)`) are
    asked for it; of any other it is the input of the last linear layer.

    Raises:
        InputError: The network has neither.
    """
    features: Any = getattr(network, "forward_features", None)
    head: Any = getattr(network, "forward_head", None)
    if features is not None and head is not None:
        return head(features(images), pre_logits=True).flatten(1)
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise InputError(
            f"network {type(network).__name__} has no linear classifier, whose input would be the "
            "embedding: give a network that has one, or condense with method='dc'"
        )
    caught: list[Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        network(images)
    finally:
        hook.remove()
    return caught[-1].flatten(1)


def class_means(network: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    """Return the mean embedding of each class, [K, d], by one pass over all images.

    Args:
        network: The network, in evaluation mode: each image is embedded by itself.
        batches: The images of class k at place k, [b_k, C, H, W]; sizes may differ.
    """
    embedded = embed(network, torch.cat(list(batches)))
    parts = embedded.split([len(b) for b in batches])
    return torch.stack([part.mean(0) for part in parts])


def distance(left: Tensor, right: Tensor) -> Tensor:
    """Return the squared distance of mean embeddings [K, d], summed over the classes."""
    return (left - right).square().sum()
