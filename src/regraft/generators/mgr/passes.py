"""Passes through a network at any weights, that leave its buffers, modes and gradients alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from regraft.config.mgr import NormPolicy
from regraft.models.classifier import as_vectors, find_classifier, logits_of, unwrap
from regraft.models.modes import kept_modes

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
        norm: What BatchNorm does: `own` normalises by the batch and keeps nothing of it, `update` keeps
            it in the running statistics, `running` normalises by these. A BatchNorm in evaluation mode
            stays as it is.
        example: Input of a pass that finds the classifier, where nothing else does.

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
        self.name, self.classifier = find_classifier(
            self.model, classifier=classifier, example=example
        )
        self._norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        kept = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in self.model.named_modules()
            if isinstance(module, _BatchNorm)
            for name, _ in module.named_buffers(recurse=False)
        }
        self._buffers = [name for name, _ in self.model.named_buffers() if name in kept]

    def weights(self) -> dict[str, Tensor]:
        """Return the trained tensors themselves, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def __call__(
        self, images: Tensor, weights: Weights | None = None, *, update: bool = False
    ) -> Outputs:
        """Return features and logits.

        Args:
            images: What the network takes, [b, C, H, W].
            weights: Used in place of the network's own, those of a part or of all.
            update: Keep statistics of the batch, where the policy is `update`.
        """
        tensors = dict(weights or {})
        if not (update and self.norm == "update"):
            own = dict(self.model.named_buffers())
            tensors |= {name: own[name].clone() for name in self._buffers}
        caught: list[Tensor] = []
        handle = self.classifier.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            with self._modes():
                output = functional_call(self.model, tensors, (images,))
        finally:
            handle.remove()
        return Outputs(as_vectors(caught[-1], self.name), logits_of(output))

    @torch.no_grad()
    def logit_entropy(self, images: Tensor) -> Tensor:
        """Return the entropy of the predicted classes of each image, [b], in nats."""
        logs = self(images).logits.float().log_softmax(1)
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
