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
from regraft.models.classifier import as_vectors, find_classifier, unwrap


def classifier_of(network: nn.Module, images: Tensor) -> str:
    """Return the name of the layer whose input is the embedding of images [b, C, H, W].

    Any network of the same architecture has it under the same name.

    Raises:
        InputError: The network has no linear classifier, or it is not clear which one it is, or it
            is not given one vector an image.
    """
    try:
        name, layer = find_classifier(network, example=images[:2])
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            raise InputError(f"{name!r}, which gives its output, is a convolution of patches")
        embed(network, images[:2], name)
    except InputError as error:
        raise InputError(
            f"network {type(network).__name__} has no linear classifier, whose input would be the "
            f"embedding ({error}): give a network that has one, or condense with method='dc'"
        ) from error
    return name


def embed(network: nn.Module, images: Tensor, classifier: str | None = None) -> Tensor:
    """Return what the network's classifier is given, [b, d].

    Networks that speak timm's protocol (`forward_features`, `forward_head(pre_logits=True)`) are
    asked for it; of any other it is the input of the classifier, maps averaged over positions.

    Args:
        network: The network, in evaluation mode.
        images: Its input, [b, C, H, W].
        classifier: The classifier's name, as `classifier_of` returns it; by default it is looked
            for, which takes two more forward passes.

    Raises:
        InputError: As `classifier_of`, or the network did not call this classifier.
    """
    features: Any = getattr(network, "forward_features", None)
    head: Any = getattr(network, "forward_head", None)
    if features is not None and head is not None:
        return as_vectors(head(features(images), pre_logits=True), "forward_head")
    if classifier is None:
        classifier = classifier_of(network, images)
    caught: list[Tensor] = []
    layer = unwrap(network).get_submodule(classifier)
    hook = layer.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        network(images)
    finally:
        hook.remove()
    if not caught:
        raise InputError(f"it does not call its classifier {classifier!r}")
    return as_vectors(caught[-1], classifier)


def class_means(
    network: nn.Module, batches: Sequence[Tensor], classifier: str | None = None
) -> Tensor:
    """Return the mean embedding of each class, [K, d], by one pass over all images.

    Args:
        network: The network, in evaluation mode: each image is embedded by itself.
        batches: The images of class k at place k, [b_k, C, H, W]; sizes may differ.
        classifier: As in `embed`.
    """
    embedded = embed(network, torch.cat(list(batches)), classifier)
    parts = embedded.split([len(b) for b in batches])
    return torch.stack([part.mean(0) for part in parts])


def distance(left: Tensor, right: Tensor) -> Tensor:
    """Return the squared distance of mean embeddings [K, d], summed over the classes."""
    return (left - right).square().sum()
