"""What a network computes from buffers, counts and integer inputs alone: known while it is exported.

`torch.export` traces with tensors that hold no values, so that `.item()` of a buffer, a branch on a
mask, a boolean index or the lengths of packed sequences stop it. Such values do not depend on the
features: they are computed beside the trace, as they are for the example inputs, and what needs one
gets it. Floating inputs and weights are never known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from . import packed
from .packed import real

INPUT = ""
"""The source of what comes from the example inputs."""
_MOST = 1 << 24
"""Elements of a tensor that is still computed beside the trace."""
_READERS = {"item", "__bool__", "__int__", "__float__", "__index__", "tolist"}
_SIZED_BY_VALUES = {
    "nonzero", "argwhere", "masked_select", "unique", "_unique2", "unique_consecutive", "unique_dim",
    "repeat_interleave", "bincount", "one_hot", "_unique_impl", "_unique_consecutive_impl",
    "_return_output", "_return_inverse", "_return_counts", "histc",
}  # fmt: skip
"""Functions whose result has a size that depends on values, or that read values of their own."""
_LOOKED_UP = ("__getitem__", "index_select", "index_put_", "index_put")
"""Functions of indices, which may be those of the code itself."""
_SHAPED = {"zeros", "ones", "empty", "full", "randn", "rand", "arange", "new_zeros", "new_ones"}
"""Functions that take counts as sizes."""
_RANDOM = (
    "rand", "bernoulli", "dropout", "multinomial", "normal", "uniform", "poisson",
    "exponential", "geometric", "cauchy",
)  # fmt: skip


@torch.library.custom_op("regraft::of_example", mutates_args=())
def of_example(x: Tensor) -> Tensor:
    """Return a tensor whose values are those of the example: they say nothing of others."""
    return x.clone()


@of_example.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@dataclass
class _Fact:
    value: Tensor
    sources: frozenset[str] = frozenset()
    """Stored buffers that it was computed from."""


@dataclass
class Facts:
    """Known values of one network during its export; see `watching`.

    Attributes:
        read: Stored buffers whose values decided what was traced: their entries stay in place.
    """

    read: set[str] = field(default_factory=set)
    _facts: Any = field(default_factory=WeakIdKeyDictionary)

    def learn(self, tensor: Tensor, value: Tensor, sources: frozenset[str] = frozenset()) -> None:
        """Note the value of a tensor of the trace."""
        if value.numel() <= _MOST and not value.is_meta:
            self._facts[tensor] = _Fact(value, sources)

    def fact(self, tensor: Tensor) -> _Fact | None:
        """Return what is known of a tensor."""
        return self._facts.get(tensor)

    def value(self, tensor: Tensor) -> Tensor | None:
        """Return the value of a tensor, and note that it decides something."""
        fact = self.fact(tensor)
        if fact is None:
            return None
        self.read |= fact.sources - {INPUT}
        return fact.value

    def forget(self, tensor: Tensor) -> None:
        """Forget what shares its memory with a tensor that was written into."""
        fact = self._facts.get(tensor)
        if fact is None:
            return
        memory = fact.value.untyped_storage().data_ptr()
        for other in list(self._facts.keys()):
            if self._facts[other].value.untyped_storage().data_ptr() == memory:
                del self._facts[other]


@contextlib.contextmanager
def watching(model: nn.Module, args: Any, kwargs: Any) -> Iterator[tuple[Facts, Any, Any]]:
    """Let `torch.export` of a network know what does not depend on features.

    Yields what is known, and the arguments to export with: sparse ones, which cannot be traced, are
    replaced and put back when the network is called.
    """
    known = Facts()
    leaves, layout = tree_flatten((args, kwargs))
    buffers = {
        name: buffer.detach()
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if not buffer.is_meta
    }
    stored = model.state_dict()
    modes: list[_Follow] = []

    def before(_module: nn.Module, a: Any, k: Any) -> tuple[Any, Any]:
        traced = tree_leaves((a, k))
        for i, (now, original) in enumerate(zip(traced, leaves, strict=True)):
            if not isinstance(original, Tensor):
                continue
            if _sparse(original):
                traced[i] = original
                known.learn(original, original)
            elif not (original.is_floating_point() or original.is_complex()):
                known.learn(now, _apart(original), frozenset([INPUT]))
        for name, now in model.named_buffers(remove_duplicate=False):
            if name in buffers:
                many = name in stored and buffers[name].numel() > 1
                known.learn(now, _apart(buffers[name]), frozenset([name] if many else []))
        modes.append(_Follow(known))
        modes[-1].__enter__()
        return tree_unflatten(traced, layout)

    def after(*_: Any) -> None:
        if modes:
            modes.pop().__exit__(None, None, None)

    hooks = [
        model.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
        model.register_forward_hook(after, always_call=True),
    ]
    plain = tree_map_only(Tensor, lambda t: torch.zeros(1) if _sparse(t) else t, (args, kwargs))
    try:
        yield known, *plain
    finally:
        for hook in hooks:
            hook.remove()


def _sparse(tensor: Tensor) -> bool:
    return tensor.layout != torch.strided


def _apart(tensor: Tensor) -> Tensor:
    """Return a tensor that writing in place may change."""
    with real():
        return tensor.detach().clone()


class _Follow(TorchFunctionMode):
    """Compute beside the trace what depends on known tensors alone, and answer with it."""

    def __init__(self, known: Facts) -> None:
        super().__init__()
        self.known = known

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling():  # inside `torch.cond`
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        facts = [self.known.fact(t) for t in tensors]
        made = self._packed(func, name, args, kwargs)
        if made is not None:
            return made
        if name in _SHAPED:
            args = tree_map_only(Tensor, self._number, args)
        if not all(facts):
            if (name.endswith("_") and not name.endswith("__")) or name == "__setitem__":
                self.known.forget(tensors[0])
            return func(*self._usable(name, args), **self._usable(name, kwargs))
        if name in _READERS and facts:
            self.known.read |= self._sources(facts) - {INPUT}
            with real():
                return getattr(facts[0].value, name)(*args[1:])  # type: ignore[union-attr]
        value = self._computed(func, name, args, kwargs)
        if value is None:
            return func(*args, **kwargs)
        apart = name in _SIZED_BY_VALUES or _boolean_index(name, args) or _holds_sparse(value)
        if apart:
            self.known.read |= self._sources(facts) - {INPUT}
        if apart:
            result = tree_map_only(Tensor, self._lifted, value) if self._sources(facts) else value
        else:
            result = func(*args, **kwargs)
        for here, there in zip(tree_leaves(result), tree_leaves(value), strict=False):
            if isinstance(here, Tensor) and isinstance(there, Tensor):
                self.known.learn(here, there, self._sources(facts))
        return result

    @staticmethod
    def _sources(facts: list[_Fact | None]) -> frozenset[str]:
        return frozenset().union(*(f.sources for f in facts if f is not None))

    def _computed(self, func: Any, name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Return what a function makes of the known values, or None where it makes no tensor."""
        if name == "__get__" or any(word in name for word in _RANDOM):
            return None
        facts = self.known._facts
        values = tree_map_only(Tensor, lambda t: facts[t].value, (args, dict(kwargs)))
        try:
            with real():
                made = func(*values[0], **values[1])
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
            return None  # the trace itself says what is wrong
        return made if any(isinstance(leaf, Tensor) for leaf in tree_leaves(made)) else None

    def _number(self, tensor: Tensor) -> Any:
        """Return a known count as a number: it is the size of something."""
        whole = not (tensor.is_floating_point() or tensor.is_complex())
        value = self.known.value(tensor) if tensor.ndim == 0 and whole else None
        if value is None:
            return tensor
        with real():
            return int(value.item())

    @staticmethod
    def _lifted(value: Tensor) -> Tensor:
        return value if _sparse(value) else of_example(value)

    def _usable(self, name: str, args: Any) -> Any:
        """Return arguments in which known masks are indices, and sparse matrices strided ones."""

        def one(tensor: Tensor) -> Any:
            if name in _LOOKED_UP and tensor.dtype == torch.int64:
                fact = self.known.fact(tensor)
                return tensor if fact is None or fact.sources else fact.value.clone()
            value = self.known.value(tensor) if _sparse(tensor) else None
            if value is None:
                return tensor
            with real():
                dense = value.to_dense()
            return of_example(dense)

        if isinstance(args, dict):
            return tree_map_only(Tensor, one, args)
        if name not in ("__getitem__", "index_put_", "index_put"):
            return tree_map_only(Tensor, one, args)
        whole = args[1] if isinstance(args[1], tuple | list) else (args[1],)
        places: list[Any] = []
        for entry in whole:
            boolean = isinstance(entry, Tensor) and entry.dtype in (torch.bool, torch.uint8)
            value = self.known.value(entry) if boolean else None
            if value is None:
                places.append(one(entry) if isinstance(entry, Tensor) else entry)
                continue
            with real():
                where = value.nonzero(as_tuple=True)
            places += [of_example(at) for at in where]
        return (args[0], tuple(places), *args[2:])

    def _packed(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """Return what stands for packed data or made of it, or None where nothing is packed."""
        if name not in ("_pack_padded_sequence", "_pad_packed_sequence") and not (
            packed.is_packed_layer(name, args)
        ):
            return None
        counts = self.known.value(args[1])
        if counts is None:
            return None
        if name == "_pack_padded_sequence":
            data, counts = packed.pack(args[0], counts, batch_first=args[2])
            self.known.learn(counts, counts)
            return data, counts
        if name == "_pad_packed_sequence":
            length = args[4] if len(args) > 4 and args[4] > 0 else None
            long = packed.lengths(counts)
            self.known.learn(long, long)
            return packed.pad(args[0], counts, batch_first=args[2], length=length), long
        return packed.layer(func, counts, args)


def _boolean_index(name: str, args: Any) -> bool:
    return name == "__getitem__" and any(
        isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8)
        for leaf in tree_leaves(args[1])
    )


def _holds_sparse(made: Any) -> bool:
    return any(isinstance(leaf, Tensor) and _sparse(leaf) for leaf in tree_leaves(made))
