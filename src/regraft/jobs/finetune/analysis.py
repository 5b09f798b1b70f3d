"""What fine-tuning does to features: their norm, their entropy, and what they say of the class.

References:
    Yamaguchi et al., "Adaptive random feature regularization on fine-tuning deep neural networks",
    CVPR 2024, section 5 (analysis).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regraft.features import AdaRand, Method
from regraft.features.samples import preserved
from regraft.protocols import BatchSource
from regraft.train import RunFolder
from regraft.train.loop import Progress


def means_of(method: Method) -> Tensor | None:
    """Return a copy of AdaRand's class means, None of any other method."""
    return method.mean.clone() if isinstance(method, AdaRand) else None


def moved(method: Method, begun: Tensor | None) -> dict[str, float]:
    """Return how far class means moved, a coordinate's root mean square in deviations of features."""
    if begun is None or not isinstance(method, AdaRand):
        return {}
    away = (method.mean - begun)[method.present].square().mean().div(method.variance).sqrt()
    return {"means_moved": away.item()}


QUANTITIES = ("feature_norm", "entropy", "mutual_information")
SPLIT = "features"
_LEAST = 1e-12


def entropy(features: Tensor) -> float:
    """Return d / (n (n - 1)) * sum over i != j of log |f_i - f_j|, in nats up to a constant.

    A nearest-neighbour estimator of differential entropy, averaged over all neighbours; distances
    below 1e-12 count as that.

    Args:
        features: [n, d], n at least 2.
    """
    n, d = features.shape
    distances = torch.pdist(features.double()).clamp(min=_LEAST)
    # Each pair stands for two ordered ones.
    return d * 2.0 * distances.log().sum().item() / (n * (n - 1))


def conditional_entropy(features: Tensor, labels: Tensor) -> float:
    """Return sum_k p_k H(f | y = k) with the same estimator; a class of one image is left out.

    Args:
        features: [n, d].
        labels: int64 [n]; at least one class has two images.
    """
    kept = [features[labels == k] for k in labels.unique()]
    kept = [f for f in kept if len(f) > 1]
    n = sum(len(f) for f in kept)
    return sum(len(f) * entropy(f) for f in kept) / n


def describe(features: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the mean norm, H(g), H(g|y), and their difference, the mutual information I(g; y)."""
    whole, within = entropy(features), conditional_entropy(features, labels)
    return {
        "feature_norm": features.double().norm(dim=1).mean().item(),
        "entropy": whole,
        "conditional_entropy": within,
        "mutual_information": whole - within,
    }


class Recorder:
    """Describes the features of held-out images along training, as a `progress` of `fit`.

    Rows go to the folder's metrics with the split `features`: before the first step and then at
    about equal distances to the last. They are the same when a killed run goes on, since `fit`
    drops what was logged after its checkpoint.

    Args:
        model: The network as it was tapped.
        method: The prepared method; its tap gives the features.
        source: The images.
        folder: An open run folder.
        points: Rows after the first.
        progress: Called as well.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        source: BatchSource,
        folder: RunFolder,
        points: int,
        progress: Progress | None = None,
    ) -> None:
        self.model, self.method, self.source, self.folder = model, method, source, folder
        self.points, self.progress = points, progress
        self.first = self.measure()

    def __call__(self, step: int, steps: int, row: dict[str, Any]) -> None:
        """Log what is due at a step."""
        if step == 1:
            self.folder.log({"step": 0, "epoch": 0, "split": SPLIT, **self.first})
        if step * self.points // steps > (step - 1) * self.points // steps:
            epoch = row.get("epoch", 0)
            self.folder.log({"step": step, "epoch": epoch, "split": SPLIT, **self.measure()})
        if self.progress is not None:
            self.progress(step, steps, row)

    def measure(self) -> dict[str, float]:
        """Describe the features as they are, in evaluation mode."""
        features, labels = [], []
        tap = self.method.tap
        if tap is None:
            raise RuntimeError("the method is not prepared")
        with preserved(self.model, "eval"):
            for x, y, _ in self.source.batches(0):
                self.model(x)
                features.append(tap.take().features)
                labels.append(y)
        return describe(torch.cat(features), torch.cat(labels))

    def described(self) -> dict[str, float]:
        """Return the features' figures at the end of training."""
        return self.measure()
