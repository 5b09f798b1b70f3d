"""The linear probe of the start, fitted in seconds: what fine-tuning has to be better than."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regraft.features import fit_probe
from regraft.features.samples import preserved
from regraft.features.tap import head_size, tap
from regraft.models.copying import copy_module
from regraft.protocols import BatchSource
from regraft.train.fabric import cast

from .engine import Tuner


@dataclass(frozen=True, eq=False)
class Probe:
    """Features [n, d] and labels [n] of the start by part, and the classifiers fitted to them.

    Features are taken in evaluation mode, without augmentation; `seconds` is what that took.
    """

    network: nn.Module
    classifier: str
    features: dict[str, Tensor]
    labels: dict[str, Tensor]
    classes: int
    seed: int
    seconds: float

    def logits(self, rows: Tensor, part: str = "train", at: Tensor | None = None) -> Tensor:
        """Return the logits of a probe fitted to training rows, for a part or rows of it."""
        weight, bias = self.fit(rows)
        features = self.features[part] if at is None else self.features[part][at]
        return features @ weight.T + bias

    def fit(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight [K, d] and bias [K] of the probe of training rows."""
        features, labels = self.features["train"][rows], self.labels["train"][rows]
        weight, bias, _ = fit_probe(features, labels, self.classes, seed=self.seed)
        return weight, bias

    @torch.no_grad()
    def model(self) -> nn.Module:
        """Return the network with the probe of all training images for its classifier."""
        weight, bias = self.fit(torch.arange(len(self.labels["train"])))
        network = copy_module(self.network)
        head: Any = network.get_submodule(self.classifier)
        head.weight.copy_(weight.reshape(head.weight.shape))
        if head.bias is not None:
            head.bias.copy_(bias)
        return network


def probe_of(tuner: Tuner) -> Probe | None:
    """Return what probes of the start need; None where the classifier is not linear with a bias."""
    began = time.monotonic()
    network = copy_module(tuner.start.model).to(tuner.fabric.device)
    tapped = tap(network, classifier=tuner.start.classifier)
    head: Any = tapped.classifier
    if head_size(head) is None or getattr(head, "bias", None) is None:
        tapped.remove()
        return None
    parts = {"train": tuner.ordered(), "validation": tuner.batches.validation}
    parts["test"] = tuner.batches.test
    features: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    with preserved(network, "eval"):
        for part, source in parts.items():
            if source is not None:
                features[part], labels[part] = _features(network, tapped, source, tuner.fabric)
    tapped.remove()
    classes, seed = tuner.splits.num_classes, tuner.runtime.seed
    seconds = time.monotonic() - began
    return Probe(network, tuner.start.classifier, features, labels, classes, seed, seconds)


def _features(network: nn.Module, tapped: Any, source: BatchSource, fabric: Any) -> Any:
    features, labels = [], []
    for x, y, _ in source.batches(0):
        network(cast(fabric.to_device(x), fabric))
        features.append(tapped.take().features.float().cpu())
        labels.append(y.cpu())
    return torch.cat(features), torch.cat(labels)
