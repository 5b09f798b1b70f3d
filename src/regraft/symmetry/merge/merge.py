"""Merging state dicts of one architecture, tensor by tensor.

The models are aligned first (`regraft.symmetry.match.match`): an average of unaligned networks is
an average of unrelated numbers. What is not a trained value is not merged by the method: integer
tensors come from the first model, running statistics are averaged and need a reset afterwards
(`regraft.symmetry.merge.repair`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regraft.checkpoints.state import check_state
from regraft.errors import InputError

from .methods import MERGE_METHODS, MergeMethod, State, average, computed_in, merge_method

__all__ = [
    "MERGE_METHODS",
    "MergeMethod",
    "is_statistic",
    "is_trained",
    "merge",
    "merge_method",
    "merge_tensors",
    "normalised",
]


def merge(
    states: Sequence[State],
    *,
    method: str = "average",
    weights: Sequence[float] | None = None,
    base: State | None = None,
    buffers: Sequence[str] = (),
    **options: Any,
) -> dict[str, Tensor]:
    """Merge aligned models of one architecture into one state dict.

    Computed in float32, or float64 where a model has it, and returned in the first model's dtypes
    and on its devices.

    Args:
        states: The aligned state dicts, read tensor by tensor.
        method: One of `MERGE_METHODS`.
        weights: Weight of each model, divided by their sum; by default all are equal.
        base: The base model, for methods on differences from one.
        buffers: Names of tensors that are no parameters: taken from the first model where all
            agree, averaged where they do not.
        options: Options of the method.

    Raises:
        InputError: Fewer than two models, one of another architecture, an unknown method or option,
            a missing base, weights that sum to zero, or a tensor with NaN or infinite values.
    """
    return dict(
        merge_tensors(states, method, weights=weights, base=base, buffers=buffers, **options)
    )


def merge_tensors(
    states: Sequence[State],
    method: str = "average",
    *,
    weights: Sequence[float] | None = None,
    base: State | None = None,
    buffers: Sequence[str] = (),
    **options: Any,
) -> Iterator[tuple[str, Tensor]]:
    """Yield names and merged tensors one by one, so that no second model need be held.

    Arguments and errors as in `merge`; those of single tensors are raised when they are reached.
    """
    chosen = _method(method, options, len(states), base)
    shares = normalised(weights, len(states))
    if base is not None:
        check_state(base, {k: tuple(v.shape) for k, v in states[0].items()}, "the base")
    for i, state in enumerate(states[1:], start=2):
        check_state(state, {k: tuple(v.shape) for k, v in states[0].items()}, f"model {i}")
    apart = set(buffers)
    settings = {**chosen.options, **options}
    prepared: dict[str, Any] = {}
    if chosen.prepare is not None:
        names = [k for k, v in states[0].items() if is_trained(k, v, apart)]
        prepared["prepared"] = chosen.prepare(states, base, names=names, **settings)
    for name in states[0]:
        tensors = [state[name] for state in states]
        root = None if base is None or not chosen.needs_base else base[name]
        if not is_trained(name, tensors[0], apart):
            yield name, _untrained(name, tensors, shares)
            continue
        first = tensors[0]
        used = _computable(name, tensors, root)
        if root is not None:
            prepared["base"] = used.pop()
        merged = chosen.function(used, weights=shares, **prepared, **settings)
        yield name, _finished(name, merged, first)


def _method(name: str, options: Mapping[str, Any], count: int, base: State | None) -> MergeMethod:
    if name not in MERGE_METHODS:
        raise InputError(
            f"method={name!r} is unknown: expected one of {', '.join(sorted(MERGE_METHODS))}"
        )
    method = MERGE_METHODS[name]
    unknown = [k for k in options if k not in method.options]
    if unknown:
        takes = f"it takes {', '.join(method.options)}" if method.options else "it takes none"
        raise InputError(f"method {name!r} has no option {unknown[0]!r}: {takes}")
    for key, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{key}={value}: expected a finite number")
    if count < 2:
        raise InputError(f"{count} model(s) to merge: expected at least two")
    if method.models is not None and count != method.models:
        raise InputError(
            f"method {name!r} takes {method.models} models and was given {count}: use average"
        )
    if method.needs_base and base is None:
        raise InputError(
            f"method {name!r} works on differences from a base model: give the base, the common "
            "ancestor of the models"
        )
    return method


def normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return weights that sum to one.

    Args:
        weights: One for each model, or None for equal ones.
        count: Number of models.

    Raises:
        InputError: Another number of weights, one that is no number, or a sum of zero.
    """
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise InputError(f"{len(weights)} weight(s) for {count} models: expected one for each")
    for weight in weights:
        if not math.isfinite(weight):
            raise InputError(f"weights={tuple(weights)}: expected finite numbers")
    total = math.fsum(weights)
    if not math.isfinite(total) or abs(total) < 1e-12:
        raise InputError(f"weights={tuple(weights)} sum to {total:g}: expected another sum than 0")
    return [weight / total for weight in weights]


def is_statistic(name: str) -> bool:
    """Whether a tensor is a running statistic of a normalisation, by its name."""
    return name.rpartition(".")[2] in ("running_mean", "running_var")


def is_trained(name: str, tensor: Tensor, buffers: set[str] | frozenset[str] = frozenset()) -> bool:
    """Whether a tensor holds trained values: of floating point, no buffer, no statistic."""
    return tensor.is_floating_point() and name not in buffers and not is_statistic(name)


def _untrained(name: str, tensors: list[Tensor], weights: list[float]) -> Tensor:
    """Return a tensor that no method should mix: the first, or the average where they differ."""
    first = tensors[0]
    if not first.is_floating_point():
        if first.is_complex() and not all(torch.equal(first, other) for other in tensors[1:]):
            raise InputError(
                f"{name} is complex: expected real tensors, or equal ones in all models"
            )
        return first.clone()
    used = _computable(name, tensors)
    if all(torch.equal(used[0], other) for other in used[1:]):
        return first.clone()
    merged = average(used, weights=weights)
    if name.endswith("running_var"):
        merged.clamp_(min=0)  # extrapolation can leave the range of a variance
    return _finished(name, merged, first)


def _computable(name: str, tensors: list[Tensor], base: Tensor | None = None) -> list[Tensor]:
    """Return tensors, the base last, in one dtype to compute in, on the first one's device."""
    called = {f"model {i}": tensor for i, tensor in enumerate(tensors, start=1)}
    if base is not None:
        called["the base"] = base
    for what, tensor in called.items():
        if not tensor.is_floating_point():
            raise InputError(
                f"{name} is {_dtype(tensors[0])} in model 1 and {_dtype(tensor)} in {what}: expected "
                "floating-point weights in all (quantised ones cannot be merged)"
            )
    dtype = computed_in(list(called.values()))
    placed = {what: tensor.to(tensors[0].device, dtype) for what, tensor in called.items()}
    for what, tensor in placed.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{name} of {what} holds NaN or infinite values: merge a checkpoint from before "
                "training diverged"
            )
    return list(placed.values())


def _finished(name: str, merged: Tensor, like: Tensor) -> Tensor:
    result = merged.to(like.dtype)
    values = result if like.dtype == torch.float64 else result.float()
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            f"{name} leaves the range of {_dtype(like)} when merged: convert the first model to "
            "float32, or use smaller weights or scale"
        )
    return result


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
