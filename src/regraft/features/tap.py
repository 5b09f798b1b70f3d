"""Penultimate features of any classifier, without changing it.

What goes into the classifier is recorded by a forward pre-hook, what comes out of it by a forward
hook, and what the network was called with by a pre-hook on the network itself.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regraft.errors import InputError
from regraft.models.classifier import as_vectors, find_classifier, logits_of, unwrap


@dataclass(frozen=True)
class Captured:
    """What one forward pass left behind.

    Attributes:
        features: Penultimate features [b, d], with their graph.
        logits: What the classifier returned.
        args: Positional arguments the network was called with.
        kwargs: Keyword arguments.
        node: Where the classifier's output stands in the graph; None outside of one.
    """

    features: Tensor
    logits: Tensor | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    node: Any = None

    def is_part_of(self, loss: Tensor) -> bool:
        """Whether a loss was computed from this forward pass; True for one without a graph."""
        if loss.grad_fn is None:
            return True
        # The classifier stands near the loss: the search ends after a few nodes where all is well.
        reached, waiting = {loss.grad_fn}, deque([loss.grad_fn])
        while waiting:
            node = waiting.popleft()
            if node is self.node:
                return True
            more = {n for n, _ in node.next_functions if n is not None} - reached
            reached |= more
            waiting += more
        return False


class Tap:
    """Holds what the network's latest forward pass gave; made by `tap`.

    Attributes:
        model: The network, unwrapped.
        name: Name of the classifier in it.
        classifier: The classifier.
    """

    def __init__(self, model: nn.Module, name: str, classifier: nn.Module) -> None:
        self.model, self.name, self.classifier = model, name, classifier
        self._features: Tensor | None = None
        self._logits: Tensor | None = None
        self._source: Tensor | None = None
        self._inputs: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._paused = False
        self._recording: list[Tensor] | None = None
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._on_call, with_kwargs=True),
            classifier.register_forward_pre_hook(self._on_classifier),
            classifier.register_forward_hook(self._on_logits),
            model.register_forward_hook(self._on_output),
        ]

    @property
    def features(self) -> Tensor:
        """Penultimate features [b, d] of the latest forward pass.

        Raises:
            InputError: There was none, or it did not call the classifier, or the classifier saw
                one vector for each token.
        """
        if self._features is None:
            raise InputError(
                f"no features: the network has not been called, or does not call its classifier "
                f"{self.name!r}; call it before the loss, compile it after tapping it, or tap another "
                "module with classifier='...'"
            )
        return as_vectors(self._features, self.name)

    def take(self) -> Captured:
        """Return what the latest forward pass left behind and forget it, so that memory is freed.

        Raises:
            InputError: As `features`.
        """
        node = None if self._source is None else self._source.grad_fn
        captured = Captured(self.features, self._logits, *self._inputs, node=node)
        self.clear()
        return captured

    def clear(self) -> None:
        """Forget what was captured."""
        self._features = self._logits = self._source = None
        self._inputs = ((), {})

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Capture nothing inside of this context."""
        was, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = was

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """Collect the features of every forward pass inside of this context, not just the latest."""
        outer, recorded = self._recording, []
        self._recording = recorded
        try:
            yield recorded
        finally:
            self._recording = outer

    def head(self, features: Tensor) -> Tensor:
        """Return the classifier's logits for other features [n, d], capturing nothing."""
        if isinstance(self.classifier, nn.Conv2d):
            features = features[:, :, None, None]
        with self.paused():
            return self.classifier(features).flatten(1)

    def remove(self) -> None:
        """Take the hooks off the network again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.clear()

    def _on_call(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._paused:
            self._features = self._logits = self._source = None
            self._inputs = (args, kwargs)

    def _on_classifier(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        if not self._paused:
            self._features = self._source = args[0]
            if self._recording is not None:
                self._recording.append(as_vectors(args[0], self.name))

    def _on_logits(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._paused and isinstance(output, Tensor):
            self._logits = self._source = output

    def _on_output(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # A decoder classifies every token and keeps one: the one whose logits it returns.
        if not self._paused and self._features is not None and self._features.dim() == 3:
            kept = _kept_tokens(self._features, self._logits, output)
            if kept is not None:
                self._features, self._logits = kept

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the network has a tap of its own; tensors inside a graph cannot be copied.
        state = self.__dict__ | {
            "_features": None,
            "_logits": None,
            "_source": None,
            "_inputs": ((), {}),
        }
        return state | {"_recording": None}

    def __repr__(self) -> str:
        return f"Tap({type(self.model).__name__}, classifier={self.name!r})"


def tap(model: nn.Module, *, classifier: str | None = None, example: Any = None) -> Tap:
    """Start recording the penultimate features of a classifier; the network stays as it is.

    Works for timm, torchvision, Hugging Face and hand-written networks, called directly, through
    DDP, or compiled (compile it after tapping it).

    Args:
        model: The network.
        classifier: Name of the classifier, for a network where it is not found by itself.
        example: Input for a forward pass that finds it: a tensor, a tuple or a mapping.

    Raises:
        InputError: No classifier is found, or several; `find_classifier` says how it is looked for.

    Example:
        >>> features = tap(model)
        >>> loss = F.cross_entropy(model(x), y) + 0.01 * features.features.square().mean()
    """
    name, module = find_classifier(model, classifier=classifier, example=example)
    return Tap(unwrap(model), name, module)


def _kept_tokens(
    features: Tensor, logits: Tensor | None, output: Any
) -> tuple[Tensor, Tensor] | None:
    """Return features [b, d] and logits [b, K] of the tokens whose logits were returned, if any."""
    try:
        kept = logits_of(output)
    except InputError:
        return None
    if logits is None or logits.dim() != 3 or kept.dim() != 2 or len(kept) != len(logits):
        return None
    same = (logits.to(kept.dtype) == kept[:, None]).all(2)
    if not same.any(1).all():
        return None
    rows, at = torch.arange(len(kept), device=kept.device), same.int().argmax(1)
    return features[rows, at], logits[rows, at]


def head_size(classifier: nn.Module) -> tuple[int, int] | None:
    """Return (features, classes) of a linear classifier, or None for another module."""
    weight = getattr(classifier, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() >= 2 and not nn.parameter.is_lazy(weight):
        return weight.shape[1], weight.shape[0]
    return None
