"""P-SSL: a semi-supervised loss on generated images, as a further term of anybody's training.

    loss = CE(f(x), y) + weight * min(1, step / warmup) * L(f, weak(x'), strong(x'))

`PseudoTerm.loss(model, step)` returns the second part. What it draws is a function of its seed and the
step, so it needs no state of its own, but for a head of its own.

References:
    Yamaguchi et al., "Transfer learning with pre-trained conditional generative models", 2022
    (arXiv 2204.12833). The head of their own for synthetic images: RS-SSL, arXiv 2405.16930.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from regraft.config import SslConfig
from regraft.data.views import Views, strong, weak
from regraft.errors import InputError
from regraft.generators.mgr.head import LearningHead
from regraft.models.classifier import as_vectors, find_classifier, unwrap
from regraft.streams import Counter

from .conditional import Unlabelled
from .losses import SslLoss, ssl_loss


class PseudoTerm:
    """The loss on images without labels.

    Args:
        unlabelled: Where they come from.
        ssl: The loss on them.
        weight: Factor of the loss, above 0.
        warmup: Steps over which the factor rises linearly from 0.
        batch_size: Images a step.
        weak: Weak views; by default shifts.
        strong: Strong views; by default shifts, two operations and a square cut out.
        mean: Mean of each channel, for pixels in [0, 1], as the network's images are normalised.
        std: Standard deviation of each channel.
        seed: Seed of all draws.
        own_head: Give the images a head of their own, so that the network's classifier is trained by
            real images alone: it makes the targets, the other head and the body learn from them.
        head_lr: Learning rate of that head, which the term trains itself (SGD, momentum 0.9).
        classifier: Name of the network's classifier, in the place of which the other head stands, where it
            is not found by itself.

    Raises:
        InputError: A weight, warm-up or batch size out of its range.
    """

    def __init__(
        self,
        unlabelled: Unlabelled,
        ssl: SslLoss,
        *,
        weight: float = 1.0,
        warmup: int = 100,
        batch_size: int = 64,
        weak: Views = weak(),  # noqa: B008  frozen
        strong: Views = strong(),  # noqa: B008
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        seed: int = 0,
        own_head: bool = False,
        head_lr: float = 0.02,
        classifier: str | None = None,
    ) -> None:
        if not weight > 0:
            raise InputError(f"weight={weight}: expected a number above 0")
        if warmup < 0 or batch_size < 1:
            raise InputError(
                f"warmup={warmup}, batch_size={batch_size}: expected at least 0 and at least 1"
            )
        self.unlabelled, self.ssl = unlabelled, ssl
        self.weight, self.warmup, self.batch_size = weight, warmup, batch_size
        self.weak, self.strong, self.seed = weak, strong, seed
        self._mean = torch.tensor(mean).view(1, -1, 1, 1)
        self._std = torch.tensor(std).view(1, -1, 1, 1)
        self.own_head, self.head_lr, self.classifier = own_head, head_lr, classifier
        self.head: LearningHead | None = None
        self._optimizer: torch.optim.SGD | None = None
        self._waiting: dict[str, Any] | None = None

    @classmethod
    def of(cls, unlabelled: Unlabelled, config: SslConfig, **more: Any) -> Self:
        """Return the term that a config tells of; `more` are arguments that it does not hold."""
        ssl = ssl_loss(
            config.ssl, temperature=config.ssl_temperature, threshold=config.ssl_threshold
        )
        return cls(
            unlabelled,
            ssl,
            weight=config.ssl_weight,
            warmup=config.ssl_warmup,
            batch_size=config.ssl_batch,
            own_head=config.own_head,
            **more,
        )

    def loss(self, model: nn.Module, step: int) -> Tensor:
        """Return the term of step `step`, counted from 0, a scalar.

        The network's normalisation layers use the statistics of these images and do not record them.

        Raises:
            InputError: A head of their own, and no classifier, several, or one that sees no vectors.
        """
        first, n = step * self.batch_size, self.batch_size
        like = next(p for p in model.parameters() if p.is_floating_point())
        with torch.no_grad():
            images = self.unlabelled.take(first, n).to(like.device)
            counters = (Counter(self.seed, name, first) for name in ("ssl/weak", "ssl/strong"))
            weaker = self._normalised(self.weak(images, next(counters)), like)
            stronger = weaker
            if self.ssl.uses_strong:
                stronger = self._normalised(self.strong(images, next(counters)), like)
        share = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        with unrecorded(model):
            student = self._student(model) if self.own_head else None
            value = self.ssl(model, weaker, stronger, student) * (self.weight * share)
        if self.head is not None:
            self.head.learn(value)
        return value

    def _normalised(self, images: Tensor, like: Tensor) -> Tensor:
        return ((images - self._mean.to(images)) / self._std.to(images)).to(like)

    def _student(self, model: nn.Module) -> Any:
        """Return the network with the head of the images' own; what that head learned is taken in."""
        name, classifier = find_classifier(model, classifier=self.classifier)
        head = self._make_head(classifier) if self.head is None else self.head
        self._settle()
        head.listen(True)

        def student(images: Tensor) -> Tensor:
            features: list[Tensor] = []
            handle = classifier.register_forward_pre_hook(lambda _, args: features.append(args[0]))
            try:
                model(images)
            finally:
                handle.remove()
            return head(as_vectors(features[-1], name))

        return student

    def _make_head(self, classifier: nn.Module) -> LearningHead:
        weights: Any = classifier.weight
        self.head = head = LearningHead(weights.shape[1], weights.shape[0]).to(weights)
        generator = torch.Generator().manual_seed(self.seed)
        bound = weights.shape[1] ** -0.5
        with torch.no_grad():
            for p in head.parameters():
                drawn = torch.rand(p.shape, generator=generator) * 2 * bound - bound
                p.copy_(drawn.to(p))
        self._optimizer = torch.optim.SGD(self.head.parameters(), lr=self.head_lr, momentum=0.9)
        if self._waiting is not None:
            self.head.load_state_dict(self._waiting["head"])
            self._optimizer.load_state_dict(self._waiting["optimizer"])
            self._waiting = None
        return head

    def _settle(self) -> None:
        """Take the step that the last backward pass has left for the head."""
        if self._optimizer is not None and self.head is not None:
            if self.head.ready():
                self._optimizer.step()
            self._optimizer.zero_grad()

    def summary(self) -> dict[str, Any]:
        """Return how many of the images without labels were confident, in all and by class.

        `fallback` says what was done instead of what their source cannot do, where there is such a thing.
        """
        fallback = getattr(self.unlabelled, "fallback", "")
        more = {"fallback": fallback} if fallback else {}
        return {"what": "images without labels", **self.ssl.confidence.summary(), **more}

    def state_dict(self) -> dict[str, Any]:
        """Return the head, its optimiser and the counts of what was confident."""
        self._settle()
        state: dict[str, Any] = {"confidence": self.ssl.confidence.state_dict()}
        if self.head is not None and self._optimizer is not None:
            state |= {
                "head": self.head.state_dict(),
                "optimizer": self._optimizer.state_dict(),
            }
        elif self._waiting is not None:
            state |= {name: self._waiting[name] for name in ("head", "optimizer")}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.ssl.confidence.load_state_dict(state["confidence"])
        if "head" not in state:
            return
        if self.head is not None and self._optimizer is not None:
            self.head.load_state_dict(state["head"])
            self._optimizer.load_state_dict(state["optimizer"])
        else:
            self._waiting = state


@contextlib.contextmanager
def unrecorded(model: nn.Module) -> Iterator[None]:
    """Let a network write to copies of its buffers: running statistics, vectors of a spectral norm."""
    kept: list[tuple[nn.Module, str, Tensor]] = []
    copies: dict[Tensor, Tensor] = {}  # by identity: one buffer may be in several modules
    for module in unwrap(model).modules():
        for name, own in module.named_buffers(recurse=False):
            kept.append((module, name, own))
            copies.setdefault(own, own.clone())
    try:
        # Other tensors, since writing the old numbers back would spoil what a backward pass needs.
        for module, name, own in kept:
            setattr(module, name, copies[own])
        yield
    finally:
        for module, name, own in kept:
            setattr(module, name, own)
