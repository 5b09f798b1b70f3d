"""Losses of semi-supervised learning on images without labels: `(model, weak, strong) -> loss`.

All of them follow one form, so that one can be put in the place of another. With p = softmax of the
logits of the weak view, the targets carry no gradient:

* `uda`: mean of 1[max p > threshold] CE(softmax(logits / temperature), strong);
* `fixmatch`: mean of 1[max p > threshold] CE(argmax p, strong);
* `pseudo_label`: the same against the weak view itself;
* `soft_pseudo_label`: CE(softmax(logits / temperature), weak), every image counts;
* `entropy`: the entropy of p, in nats, with its gradient;
* `consistency`: mean squared distance of the probabilities of weak and strong view.

References:
    Xie et al., "Unsupervised data augmentation for consistency training", NeurIPS 2020 (uda).
    Sohn et al., "FixMatch", NeurIPS 2020, eq. 4. Lee, "Pseudo-label", ICML workshop 2013. Grandvalet
    and Bengio, "Semi-supervised learning by entropy minimization", NeurIPS 2004. Laine and Aila,
    "Temporal ensembling for semi-supervised learning", ICLR 2017 (consistency).
    Yamaguchi et al., "Transfer learning with pre-trained conditional generative models", 2022
    (arXiv 2204.12833), where they are compared on generated images.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.errors import InputError

Logits = Callable[[Tensor], Tensor]
"""A network: images [n, C, H, W] -> logits [n, K]."""


class Confidence:
    """How sure a network was of the images without labels, over all steps so far, by class.

    Attributes:
        predicted: Images of which each class was the most likely, int64 [K].
        passed: Those of them that passed the threshold, int64 [K].
    """

    def __init__(self) -> None:
        self.predicted = torch.zeros(0, dtype=torch.int64)
        self.passed = torch.zeros(0, dtype=torch.int64)

    def add(self, probabilities: Tensor, passes: Tensor) -> None:
        """Count a batch: [n, K], and bool [n]."""
        k = probabilities.shape[1]
        if len(self.predicted) != k:
            self.predicted = torch.zeros(k, dtype=torch.int64)
            self.passed = torch.zeros(k, dtype=torch.int64)
        likely = probabilities.argmax(1)
        self.predicted += likely.bincount(minlength=k).cpu()
        self.passed += likely[passes].bincount(minlength=k).cpu()

    @property
    def share(self) -> float:
        """Share of all images that passed, 0 without any."""
        total = int(self.predicted.sum())
        return int(self.passed.sum()) / total if total else 0.0

    def summary(self) -> dict[str, Any]:
        """Return the share that passed, and by class the share predicted and of these passed."""
        total = max(int(self.predicted.sum()), 1)
        return {
            "images": int(self.predicted.sum()),
            "passed": self.share,
            "by_class": [
                {"predicted": p / total, "passed": q / p if p else None}
                for p, q in zip(self.predicted.tolist(), self.passed.tolist(), strict=True)
            ],
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts."""
        return {"predicted": self.predicted.clone(), "passed": self.passed.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self.predicted, self.passed = state["predicted"].clone(), state["passed"].clone()


class SslLoss(nn.Module, ABC):
    """A loss on images without labels, called as `loss(model, weak, strong)`.

    Args:
        temperature: What logits are divided by for a target, above 0.
        threshold: Least probability of a target that counts, in [0, 1).

    Attributes:
        confidence: What passed, over all calls.

    Raises:
        InputError: A value out of its range.
    """

    default_temperature: float = 1.0
    default_threshold: float = 0.0
    uses_strong: bool = True

    def __init__(self, *, temperature: float | None = None, threshold: float | None = None) -> None:
        super().__init__()
        self.temperature = self.default_temperature if temperature is None else temperature
        self.threshold = self.default_threshold if threshold is None else threshold
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"temperature={self.temperature}: expected a finite number above 0")
        if not 0 <= self.threshold < 1:
            raise InputError(
                f"threshold={self.threshold}: expected a probability from 0 to below 1"
            )
        self.confidence = Confidence()

    def forward(
        self, model: Logits, weak: Tensor, strong: Tensor, student: Logits | None = None
    ) -> Tensor:
        """Return the loss, a scalar in nats (a squared distance for `consistency`).

        Args:
            model: The network; targets are its own.
            weak: Weak views, [n, C, H, W], as the network takes them.
            strong: Strong views of the same images.
            student: What learns from the targets, if not the network itself.
        """
        return self._loss(model, student or model, weak, strong)

    @abstractmethod
    def _loss(self, model: Logits, student: Logits, weak: Tensor, strong: Tensor) -> Tensor: ...

    @torch.no_grad()
    def _target(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, probabilities at temperature 1 and which images count, and note the latter."""
        logits = logits.detach().float()
        p = logits.softmax(1)
        passes = p.amax(1) > self.threshold
        self.confidence.add(p, passes)
        return logits, p, passes

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"temperature={self.temperature:g}, threshold={self.threshold:g}"


def _masked(losses: Tensor, passes: Tensor) -> Tensor:
    return (losses * passes).mean()


class Uda(SslLoss):
    """Sharpened targets of confident weak views for the strong ones."""

    default_temperature = 0.4
    default_threshold = 0.8

    def _loss(self, model: Logits, student: Logits, weak: Tensor, strong: Tensor) -> Tensor:
        with torch.no_grad():
            logits, _, passes = self._target(model(weak))
        sharp = (logits / self.temperature).softmax(1)
        return _masked(F.cross_entropy(student(strong), sharp, reduction="none"), passes)


class FixMatch(SslLoss):
    """The class of confident weak views for the strong ones."""

    default_threshold = 0.95

    def _loss(self, model: Logits, student: Logits, weak: Tensor, strong: Tensor) -> Tensor:
        with torch.no_grad():
            logits, _, passes = self._target(model(weak))
        return _masked(F.cross_entropy(student(strong), logits.argmax(1), reduction="none"), passes)


class PseudoLabel(SslLoss):
    """The class of a confident weak view for itself."""

    default_threshold = 0.95
    uses_strong = False

    def _loss(self, model: Logits, student: Logits, weak: Tensor, strong: Tensor) -> Tensor:
        own = student(weak)
        target = own if student is model else _no_grad(model, weak)
        logits, _, passes = self._target(target)
        return _masked(F.cross_entropy(own, logits.argmax(1), reduction="none"), passes)


class SoftPseudoLabel(SslLoss):
    """The sharpened probabilities of the weak view for itself; every image counts."""

    default_temperature = 0.4
    uses_strong = False

    def _loss(self, model: Logits, student: Logits, weak: Tensor, strong: Tensor) -> Tensor:
        own = student(weak)
        target = own if student is model else _no_grad(model, weak)
        logits, _, passes = self._target(target)
        sharp = (logits / self.temperature).softmax(1)
        return _masked(F.cross_entropy(own, sharp, reduction="none"), passes)


class EntropyMinimisation(SslLoss):
    """The entropy of the weak view's probabilities."""

    uses_strong = False

    def _loss(self, model: Logits, student: Logits, weak: Tensor, strong: Tensor) -> Tensor:
        own = student(weak)
        _, _, passes = self._target(own)
        log_p = (own / self.temperature).log_softmax(1)
        return _masked(-(log_p.exp() * log_p).sum(1), passes)


class ConsistencyLoss(SslLoss):
    """The squared distance of two views' probabilities."""

    def _loss(self, model: Logits, student: Logits, weak: Tensor, strong: Tensor) -> Tensor:
        with torch.no_grad():
            logits, _, passes = self._target(model(weak))
        p = (logits / self.temperature).softmax(1)
        return _masked((student(strong).softmax(1) - p).pow(2).sum(1), passes)


def _no_grad(model: Logits, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)


SSL_LOSSES: dict[str, type[SslLoss]] = {
    "uda": Uda,
    "fixmatch": FixMatch,
    "pseudo_label": PseudoLabel,
    "soft_pseudo_label": SoftPseudoLabel,
    "entropy": EntropyMinimisation,
    "consistency": ConsistencyLoss,
}
"""Losses by name."""


def ssl_loss(name: str, **options: float | None) -> SslLoss:
    """Return a loss by its name.

    Raises:
        InputError: An unknown name, or a value out of its range.
    """
    if name not in SSL_LOSSES:
        raise InputError(f"ssl={name!r}: expected one of {', '.join(SSL_LOSSES)}")
    return SSL_LOSSES[name](**options)
