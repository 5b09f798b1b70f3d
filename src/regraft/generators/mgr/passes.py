"""Passes through a network at any weights, that leave its buffers, modes and gradients alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from regraft.config.mgr import NormPolicy
from regraft.models.classifier import as_vectors, find_classifier, logits_of, unwrap
from regraft.models.modes import kept_modes

from .head import at_least_float32

Weights = Mapping[str, Tensor]
"""Trained tensors by their names in the network."""


@dataclass(frozen=True)
class Outputs:
    """What a pass gives.

    Attributes:
        features: What the classifier is called with, [b, d].
        logits: [b, K].
    """

    features: Tensor
    logits: Tensor


class Passes:
    """Calls a network with other weights.

    Args:
        model: The network, wrapped or not.
        classifier: Name of its classifier where it is not found by itself.
        norm: What BatchNorm and the like do: `own` normalises by the batch and keeps nothing of it,
            `update` keeps it in the running statistics, `running` normalises by these. One in evaluation
            mode stays as it is.
        example: Input of a pass that finds the classifier, where nothing else does.

    Attributes:
        narrow: The type that passes compute in under autocast, or None for the weights' own. Features and
            logits are float32 at least, since distances and cross-entropies are lost in bfloat16.

    Raises:
        InputError: No classifier, or several.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        classifier: str | None = None,
        norm: NormPolicy = "own",
        example: Any = None,
    ) -> None:
        self.model, self.norm = unwrap(model), norm
        self.narrow: torch.dtype | None = None
        self.name, self.classifier = find_classifier(
            self.model, classifier=classifier, example=example
        )
        self._norms = [m for m in self.model.modules() if isinstance(m, _NormBase)]

    def weights(self) -> dict[str, Tensor]:
        """Return the trained tensors themselves, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def __call__(
        self, images: Tensor, weights: Weights | None = None, *, update: bool = False
    ) -> Outputs:
        """Return features and logits.

        Args:
            images: What the network takes, [b, C, H, W]; they are brought to the type of the weights.
            weights: Used in place of the network's own, those of a part or of all.
            update: Keep statistics of the batch, where the policy is `update`.
        """
        tensors = dict(weights or {})
        if not (update and self.norm == "update"):
            # All of them: a spectral norm keeps what it saw as well.
            tensors |= {name: own.clone() for name, own in self.model.named_buffers()}
        if images.is_floating_point():
            images = images.to(_floats(dict(self.model.named_parameters()) | tensors, images.dtype))
        caught: list[Tensor] = []
        handle = self.classifier.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            with self._modes(), autocast(images.device, self.narrow):
                output = functional_call(self.model, tensors, (images,))
        finally:
            handle.remove()
        features, logits = as_vectors(caught[-1], self.name), logits_of(output)
        return Outputs(at_least_float32(features), at_least_float32(logits))

    @contextlib.contextmanager
    def wide(self) -> Iterator[None]:
        """Compute in the weights' own type inside, whatever `narrow` is."""
        narrow, self.narrow = self.narrow, None
        try:
            yield
        finally:
            self.narrow = narrow

    @torch.no_grad()
    def logit_entropy(self, images: Tensor) -> Tensor:
        """Return the entropy of the predicted classes of each image, [b], in nats."""
        logs = self(images).logits.log_softmax(1)
        return -(logs.exp() * logs).sum(1)

    @contextlib.contextmanager
    def _modes(self) -> Iterator[None]:
        if self.norm != "running":
            yield
            return
        with kept_modes(self.model):
            for module in self._norms:
                module.training = False
            yield


def _floats(weights: Weights, otherwise: torch.dtype) -> torch.dtype:
    """Return the type of the first weights that are floating."""
    return next((w.dtype for w in weights.values() if w.is_floating_point()), otherwise)


def autocast(device: torch.device, narrow: torch.dtype | None) -> Any:
    """Return autocast to `narrow`, or without it the end of whatever autocast there is around.

    Casts are not kept: one made without a graph would be used where there has to be one.
    """
    return torch.autocast(
        device.type, narrow or torch.bfloat16, enabled=narrow is not None, cache_enabled=False
    )
