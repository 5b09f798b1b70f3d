"""One pass over the target's training batches, before training."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import InputError
from regraft.models.modes import kept_modes

from .parallel import world

_LABELS = ("labels", "label", "targets", "target")


class Samples:
    """Batches as (inputs of the network, labels [b]) on the network's device, whatever they were.

    In a distributed run each process goes through its share: of a `BatchSource` it asks for its own,
    and any other loader has to give each process other images, as under a `DistributedSampler`.

    Args:
        loader: Iterable of (inputs, labels, ...), or of mappings with `labels`; or a `BatchSource`.
        model: The network.
    """

    def __init__(self, loader: Any, model: nn.Module) -> None:
        self.loader, self.model = loader, model
        like = next(iter(model.parameters()), None)
        self.device = torch.device("cpu") if like is None else like.device
        self.dtype = torch.float32 if like is None else like.dtype
        self._first: Any = None
        self._rest: Iterator[Any] | None = None

    def example(self) -> Any:
        """Return the inputs of the first batch.

        Raises:
            InputError: There is none.
        """
        if self._rest is not None:
            return split(self._first, self.device, self.dtype)[0]
        batches = self._open()
        try:
            self._first = next(batches)
        except StopIteration:
            raise InputError("loader gives no batch: expected the target's training data") from None
        self._rest = batches
        return split(self._first, self.device, self.dtype)[0]

    def __iter__(self) -> Iterator[tuple[Any, Tensor]]:
        if self._rest is None:
            self.example()
        first, rest = self._first, self._rest
        self._first = self._rest = None
        yield split(first, self.device, self.dtype)
        for batch in rest or ():
            yield split(batch, self.device, self.dtype)

    def _open(self) -> Iterator[Any]:
        batches = getattr(self.loader, "batches", None)
        if callable(batches):
            return _share(batches)
        try:
            return iter(self.loader)
        except TypeError:
            raise InputError(
                f"loader is a {type(self.loader).__name__}: expected an iterable of "
                "(inputs, labels), such as a DataLoader"
            ) from None


def _share(batches: Callable[..., Iterator[Any]]) -> Iterator[Any]:
    """Return this process's share of the batches of a `BatchSource`."""
    rank, size = world()
    names = inspect.signature(batches).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in names.values())
    if size == 1 or not (free or {"rank", "world"} <= names.keys()):
        return iter(batches(0))
    # Of a last batch smaller than the number of processes some have none.
    return (batch for batch in batches(0, rank=rank, world=size) if len(batch[1]))


def split(batch: Any, device: torch.device, dtype: torch.dtype) -> tuple[Any, Tensor]:
    """Return inputs and labels of a batch, on a device, floating inputs in the network's type.

    Raises:
        InputError: It is neither a sequence of inputs and labels nor a mapping with labels, or the
            labels are not integers [b].
    """
    if isinstance(batch, Mapping):
        key = next((k for k in _LABELS if k in batch), None)
        if key is None:
            raise InputError(
                f"a batch has the keys {', '.join(map(str, batch))}: expected labels among them "
                f"({', '.join(_LABELS)})"
            )
        inputs: Any = {k: v for k, v in batch.items() if k != key}
        labels = batch[key]
    elif isinstance(batch, tuple | list) and len(batch) >= 2:
        inputs, labels = batch[0], batch[1]
    else:
        raise InputError(
            f"a batch is a {type(batch).__name__}: expected (inputs, labels) or a mapping with labels"
        )
    labels = torch.as_tensor(labels)
    if labels.dim() != 1 or labels.is_floating_point():
        raise InputError(
            f"labels of shape {tuple(labels.shape)} and {labels.dtype}: expected one class an "
            "image, integers [b] (mixup off: statistics are taken before it)"
        )
    return moved(inputs, device, dtype), labels.to(device, torch.int64)


def moved(inputs: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return inputs on a device, floating ones in `dtype`."""
    if isinstance(inputs, Tensor):
        return inputs.to(device, dtype if inputs.is_floating_point() else None)
    if isinstance(inputs, Mapping):
        return {k: moved(v, device, dtype) for k, v in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(moved(v, device, dtype) for v in inputs)
    return inputs


@contextlib.contextmanager
def preserved(model: nn.Module, mode: str) -> Iterator[None]:
    """Put a network in a mode, and leave modes, buffers and torch's random state as they were.

    Args:
        model: The network.
        mode: `train`, `eval`, or `as_is`.
    """
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    like = next(iter(model.parameters()), None)
    devices = [like.device] if like is not None and like.is_cuda else []
    try:
        with kept_modes(model), torch.random.fork_rng(devices=devices), torch.no_grad():
            if mode != "as_is":
                model.train(mode == "train")
            # What dropout drops here must not depend on what ran before.
            torch.default_generator.manual_seed(0)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(0)
            yield
    finally:
        with torch.no_grad():
            for buffer, was in buffers:
                buffer.copy_(was)


def at_least_two(samples: Samples) -> Iterator[tuple[Any, Tensor]]:
    """Yield the batches, those of a single image joined with the next one, the last with the one before.

    BatchNorm cannot normalise one image by itself in the mode of training.
    """
    held: tuple[Any, Tensor] | None = None
    lone: tuple[Any, Tensor] | None = None
    for batch in samples:
        if held is None:
            held = batch
        elif lone is None and len(batch[1]) == 1 < len(held[1]):
            lone = batch  # whether a batch follows that it can join shows next
        else:
            left = held if lone is None else lone
            if lone is not None:
                yield held
            both = _joined(left, batch) if len(left[1]) == 1 else None
            if both is None:
                yield left
            held, lone = both or batch, None
    if held is not None and lone is not None:
        both = _joined(held, lone)
        yield from (held, lone) if both is None else (both,)
    elif held is not None:
        yield held


def _joined(left: tuple[Any, Tensor], right: tuple[Any, Tensor]) -> tuple[Any, Tensor] | None:
    (x, y), (u, v) = left, right
    if isinstance(x, Tensor) and isinstance(u, Tensor) and x.shape[1:] == u.shape[1:]:
        return torch.cat([x, u]), torch.cat([y, v])
    return None


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse labels outside [0, K).

    Raises:
        InputError: There are any.
    """
    if not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise InputError(
            f"labels go from {low} to {high}: expected 0 to {num_classes - 1} for a head of "
            f"{num_classes} classes; give the network a head of the target's size"
        )
