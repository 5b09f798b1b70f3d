"""Gradients of several networks of one architecture on the same batches.

Normalisations use the statistics of each batch, as in training, and leave no trace in the running
ones; everything else is in evaluation mode, so that dropout is off: a permuted network cannot be
given the masks of another, and its noise would be matched.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from regraft.errors import DivergenceError, InputError
from regraft.protocols import BatchSource
from regraft.symmetry.match.straight_through import Loss, batch_statistics

from .trajectory import wide

EPOCHS = 1 << 20
"""Epochs set aside for one draw; only the first are used unless an epoch has too few batches."""

Span: TypeAlias = tuple[int, int] | None
"""The least and the largest label of a batch; None where they are no numbers of classes."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """What the gradients are of: the mean loss over a few batches.

    Attributes:
        model: The architecture; its own weights are neither used nor changed.
        batches: Labelled batches: a `BatchSource`, each draw of which is the start of an epoch of
            its own, so that it can be repeated; or any loader of pairs (inputs, labels) that can be
            read again and shuffles itself.
        count: Batches of a draw (`gm_iters` in the paper's settings).
        loss: (outputs [b, K], labels [b]) -> scalar mean; cross-entropy by default.
        autocast: Dtype of mixed precision, e.g. bfloat16; None computes in the weights' own.
        together: Compute all networks of a draw in one vectorised pass. Gains nothing on a CPU,
            where products are large enough to fill it; for small networks on a GPU.
    """

    model: nn.Module
    batches: BatchSource | Iterable[Any]
    count: int = 1
    loss: Loss = F.cross_entropy
    autocast: torch.dtype | None = None
    together: bool = False

    @property
    def repeatable(self) -> bool:
        """Whether the same number draws the same batches again."""
        return isinstance(self.batches, BatchSource)

    @property
    def device(self) -> torch.device:
        """Where the gradients are computed."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def at(
        self,
        states: Sequence[Mapping[str, Tensor]],
        names: Sequence[str],
        draw: int,
        *,
        skip: int = 0,
    ) -> list[dict[str, Tensor]]:
        """Return the mean gradient of each network over one draw of batches.

        Batches are added up in float32 at least, and the mean is in the parameter's dtype.

        Args:
            states: State dicts of the architecture.
            names: What to call each in an error, e.g. "the target at step 3".
            draw: Number of the draw.
            skip: Batches at the start of the draw to leave out.

        Returns:
            By state, name -> gradient of every parameter that the loss depends on, each a tensor of
            its own.

        Raises:
            InputError: No batches, labels that the outputs have no place for, or batches too small.
            DivergenceError: A loss is not finite; the message names the network.
        """
        totals: list[dict[str, Tensor]] = [{} for _ in states]
        placed = [self._placed(state) for state in states]
        with batch_statistics(self.model):
            n = 0
            for x, y in self._draw(draw, skip):
                n += 1
                for total, gradients in zip(totals, self._of(placed, names, x, y), strict=True):
                    for name, gradient in gradients.items():
                        _accumulate(total, name, gradient)
        kinds = {k: p.dtype for k, p in self.model.named_parameters()}
        return [{k: v.div_(n).to(kinds[k]) for k, v in total.items()} for total in totals]

    def check(self, state: Mapping[str, Tensor], name: str) -> None:
        """Refuse a network or batches of which no gradients can be matched.

        Raises:
            InputError: As `at`; or the outputs are no logits [b, K], or other ones each time.
            DivergenceError: As `at`.
        """
        if self.count < 1:
            raise InputError(f"count={self.count}: expected at least 1 batch for each gradient")
        placed = self._placed(state)
        with batch_statistics(self.model), torch.no_grad():
            x, y = next(self._draw(0))
            with _batches_fit():
                first, second = (self._outputs(*placed, x) for _ in range(2))
        if not isinstance(first, Tensor) or first.ndim != 2 or len(first) != len(y):
            raise InputError(
                f"{type(self.model).__name__} gives no logits [b, K] for a batch: expected a classifier"
            )
        scale = float(first.float().abs().max()) or 1.0
        if float((first - second).float().abs().max()) > 1e-3 * scale:
            raise InputError(
                f"{type(self.model).__name__} gives other outputs each time it is called, though dropout "
                "is off: switch off what else is random in its forward"
            )
        _refuse_labels(_span(y), first)
        _refuse_not_finite(self.loss(wide(first), y), name)

    def _of(
        self,
        states: list[tuple[dict[str, Tensor], dict[str, Tensor]]],
        names: Sequence[str],
        x: Tensor,
        y: Tensor,
    ) -> list[dict[str, Tensor]]:
        span = _span(y)
        with _batches_fit():
            if self.together and len(states) > 1:
                losses, gradients = self._vectorised(states, x, y, span)
            else:
                pairs = [self._single(state, x, y, span) for state in states]
                losses, gradients = [p[0] for p in pairs], [p[1] for p in pairs]
        for loss, name in zip(losses, names, strict=True):
            _refuse_not_finite(loss, name)
        return gradients

    def _single(
        self, state: tuple[dict[str, Tensor], dict[str, Tensor]], x: Tensor, y: Tensor, span: Span
    ) -> tuple[Tensor, dict[str, Tensor]]:
        parameters = {k: v.detach().requires_grad_() for k, v in state[0].items()}
        loss = self._loss(parameters, state[1], x, y, span)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        known = zip(parameters, gradients, strict=True)
        return loss.detach(), {k: g for k, g in known if g is not None}

    def _vectorised(
        self,
        states: list[tuple[dict[str, Tensor], dict[str, Tensor]]],
        x: Tensor,
        y: Tensor,
        span: Span,
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        parameters, buffers = (
            {k: torch.stack([state[i][k] for state in states]) for k in states[0][i]}
            for i in (0, 1)
        )
        each = vmap(grad_and_value(self._loss), in_dims=(0, 0, None, None, None))
        gradients, losses = each(parameters, buffers, x, y, span)
        rows = range(len(states))
        return [losses[i] for i in rows], [{k: g[i] for k, g in gradients.items()} for i in rows]

    def _loss(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        span: Span,
    ) -> Tensor:
        outputs = self._outputs(parameters, buffers, x)
        _refuse_labels(span, outputs)
        return self.loss(wide(outputs), y)

    def _outputs(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor
    ) -> Tensor:
        # Buffers are copies: batch statistics must not leave a trace.
        state = {**{k: v.clone() for k, v in buffers.items()}, **parameters}
        if self.autocast is None:
            return functional_call(self.model, state, x)
        with torch.autocast(self.device.type, dtype=self.autocast):
            return functional_call(self.model, state, x)

    def _placed(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return parameters and buffers on the model's device and in its dtypes, without aliases."""
        own = dict(self.model.named_parameters())
        parameters = {k: state[k].detach().to(p.device, p.dtype) for k, p in own.items()}
        kept = {
            k: state[k].detach().to(b.device, b.dtype)
            for k, b in self.model.named_buffers()
            if k in state
        }
        return parameters, kept

    def _draw(self, number: int, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        like = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        for x, y in itertools.islice(self._batches(number), skip, skip + self.count):
            x, y = x.to(like.device), y.to(like.device)
            yield x.to(like.dtype) if x.is_floating_point() else x, y

    def _batches(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count(number * EPOCHS):
            source = self.batches
            several = source.batches(epoch) if isinstance(source, BatchSource) else iter(source)
            empty = True
            for batch in several:
                empty = False
                yield batch[0], batch[1]
            if empty:
                raise InputError(
                    "batches: there are none (an iterator can be read only once: give a loader)"
                )


def _refuse_not_finite(loss: Tensor, name: str) -> None:
    if not math.isfinite(float(loss)):
        raise DivergenceError(
            f"the loss of {name} is {float(loss)}: its weights or the inputs are too large there; use "
            "fewer steps of the trajectory, or inputs normalised as in training"
        )


def _accumulate(total: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    """Add to a buffer of our own: what autograd returns may be shared, or one number expanded."""
    kind = torch.promote_types(gradient.dtype, torch.float32)
    if name in total:
        total[name].add_(gradient)
    else:
        total[name] = gradient.detach().to(kind, copy=True)


def _span(labels: Tensor) -> Span:
    """Return the least and the largest label, None where they are no classes."""
    if labels.is_floating_point() or labels.ndim != 1 or not labels.numel():
        return None
    low, high = torch.stack(torch.aminmax(labels)).tolist()  # one wait for the device
    return int(low), int(high)


def _refuse_labels(span: Span, outputs: Tensor) -> None:
    """Refuse labels before the loss meets them: there a device fails for good, without a word."""
    if span is None or not isinstance(outputs, Tensor) or outputs.ndim != 2:
        return
    (low, high), count = span, outputs.shape[1]
    if low < 0 or high >= count:
        raise InputError(
            f"the data have a label {low if low < 0 else high} and the network {count} outputs: give data "
            "of the classes that both networks were made for"
        )


@contextlib.contextmanager
def _batches_fit() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"batches: they are too small for batch statistics ({error}): use larger ones"
        ) from error
