"""Merging state dicts of one architecture, tensor by tensor.

A method is a function on the tensors of one name plus one `@merge_method` line; nothing else has to
know it. The models are aligned first (`regraft.symmetry.match`): an average of unaligned networks is
an average of unrelated numbers. What is not a trained value is not merged by the method: integer
tensors come from the first model, running statistics are averaged and need a reset afterwards
(`regraft.symmetry.repair`).

References:
    Wortsman et al., "Model soups", ICML 2022 (average).
    Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985 (SLERP).
    Ilharco et al., "Editing models with task arithmetic", ICLR 2023.
    Yadav et al., "TIES-merging: resolving interference when merging models", NeurIPS 2023.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from regraft.errors import InputError

from .state import check_state

State: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class MergeMethod:
    """A way to merge: what it is called with, as data.

    Attributes:
        name: Its name.
        function: Called with the tensors of one name and `weights`, which sum to one, with `base`
            where it needs one, and with its options.
        needs_base: Whether it works on differences from a base model.
        models: The only number of models it takes, or None for any.
        options: Its own keyword arguments and their defaults.
        prepare: Called once with all states, the base and the options, before any tensor; returns
            for every model what `function` then gets as `prepared`.
    """

    name: str
    function: Callable[..., Tensor]
    needs_base: bool
    models: int | None
    options: Mapping[str, Any]
    prepare: Callable[..., list[Any]] | None


MERGE_METHODS: dict[str, MergeMethod] = {}
"""All merge methods by name; `merge_method` adds one."""


def merge_method(
    name: str, *, models: int | None = None, prepare: Callable[..., list[Any]] | None = None
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function on the tensors of one name as a merge method.

    Args:
        name: Name of the method.
        models: The only number of models it takes, or None for any.
        prepare: See `MergeMethod`.
    """

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        parameters = inspect.signature(function).parameters
        known = ("tensors", "base", "weights", "prepared")
        options = {k: p.default for k, p in parameters.items() if k not in known}
        MERGE_METHODS[name] = MergeMethod(
            name, function, "base" in parameters, models, options, prepare
        )
        return function

    return register


@merge_method("average")
def average(tensors: Sequence[Tensor], *, weights: Sequence[float]) -> Tensor:
    """Return Σ w_i θ_i.

    Args:
        tensors: One tensor of each model, of one shape and floating-point dtype.
        weights: Weight of each; outside [0, 1] they extrapolate.
    """
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor, alpha=weight)
    return total


@merge_method("slerp", models=2)
def slerp(tensors: Sequence[Tensor], *, weights: Sequence[float]) -> Tensor:
    """Return sin((1-t)ω)/sin(ω) a + sin(tω)/sin(ω) b, with ω the angle between a and b as vectors.

    t is the second weight. Where the angle is 0 or π, or a vector is zero, there is no arc to
    follow and the result is the straight line between them.

    Args:
        tensors: Two tensors of one shape.
        weights: Their weights, which sum to one.
    """
    a, b = (tensor.double().flatten() for tensor in tensors)
    norms = a.norm() * b.norm()
    t = weights[1]
    omega = 0.0
    if norms > 0:
        # Half-angle form: exact where the arc cosine loses half of its digits.
        x, y = a / a.norm(), b / b.norm()
        omega = 2 * math.atan2(float((x - y).norm()), float((x + y).norm()))
    sine = math.sin(omega)
    if abs(sine) < 1e-6:
        return average(tensors, weights=weights)
    left, right = math.sin((1 - t) * omega) / sine, math.sin(t * omega) / sine
    return (left * a + right * b).reshape(tensors[0].shape).to(tensors[0].dtype)


@merge_method("task_arithmetic")
def task_arithmetic(
    tensors: Sequence[Tensor], base: Tensor, *, weights: Sequence[float], scale: float = 1.0
) -> Tensor:
    """Return θ_0 + λ Σ w_i (θ_i - θ_0).

    The weights sum to one, so the λ of the paper, which adds the task vectors up, is λ / n here.

    Args:
        tensors: One tensor of each model.
        base: The tensor of the base model θ_0.
        weights: Weight of each model.
        scale: λ; 1 is the average.
    """
    vectors = [tensor - base for tensor in tensors]
    return base + average(vectors, weights=weights).mul_(scale)


def _thresholds(
    states: Sequence[State],
    base: State,
    *,
    names: Sequence[str],
    density: float,
    scope: str,
    **_: Any,
) -> list[float | None]:
    """Return for each model the magnitude from which on a difference is kept, None by tensor."""
    if not 0 < density <= 1:
        raise InputError(f"density={density}: expected the share of values to keep, in (0, 1]")
    if scope not in ("model", "tensor"):
        raise InputError(f"scope={scope!r}: expected 'model' or 'tensor'")
    if scope == "tensor":
        return [None] * len(states)
    found: list[float | None] = []
    for state in states:  # one model's magnitudes at a time
        sizes = [(state[k].float() - base[k].float()).abs().flatten() for k in names]
        found.append(_threshold(torch.cat(sizes), density) if sizes else 0.0)
    return found


def _threshold(sizes: Tensor, density: float) -> float:
    """Return the size of the smallest of the largest values that make up this share."""
    kept = max(1, round(density * sizes.numel()))
    return sizes.kthvalue(sizes.numel() - kept + 1).values.item() if sizes.numel() else 0.0


@merge_method("ties", prepare=_thresholds)
def ties(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    prepared: Sequence[float | None] | None = None,
    density: float = 0.2,
    scale: float = 1.0,
    scope: str = "model",
) -> Tensor:
    """Return θ_0 + λ τ, with τ from trimmed differences whose signs agree.

    Of each τ_i = θ_i - θ_0 the largest values in magnitude are kept and the rest set to zero (trim).
    The sign of a position is that of Σ w_i τ_i (elect), and τ there is the weighted mean of those
    τ_i that have it (disjoint merge); where none has, it is zero.

    Args:
        tensors: One tensor of each model.
        base: The tensor of the base model θ_0.
        weights: Weight of each model.
        prepared: Magnitude from which on each model's differences are kept, None to take the share
            of this tensor alone.
        density: Share of the values kept.
        scale: λ.
        scope: The share is of all values of a model (`model`, as in the paper) or of each tensor
            by itself (`tensor`).
    """
    limits = prepared or [None] * len(tensors)
    total, mass = torch.zeros_like(base), torch.zeros_like(base)
    trimmed = []
    for tensor, limit, weight in zip(tensors, limits, weights, strict=True):
        vector = tensor - base
        sizes = vector.abs()
        bound = _threshold(sizes.flatten(), density) if limit is None else limit
        # Equal magnitudes at the threshold are all kept.
        vector = torch.where(sizes >= bound, vector, 0)
        trimmed.append(vector)
        total.add_(vector, alpha=weight)
    elected = total.sign()
    total = torch.zeros_like(base)
    for vector, weight in zip(trimmed, weights, strict=True):
        agrees = (vector.sign() == elected) & (elected != 0)
        total.add_(torch.where(agrees, vector, 0), alpha=weight)
        mass.add_(agrees.to(base.dtype), alpha=weight)
    return base + torch.where(mass != 0, total / mass, 0).mul_(scale)


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
    given = {**chosen.options, **options}
    prepared: dict[str, Any] = {}
    if chosen.prepare is not None:
        names = [k for k, v in states[0].items() if is_trained(k, v, apart)]
        prepared["prepared"] = chosen.prepare(states, base, names=names, **given)
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
        merged = chosen.function(used, weights=shares, **prepared, **given)
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
    wide = any(tensor.dtype == torch.float64 for tensor in called.values())
    dtype = torch.float64 if wide else torch.float32
    found = {what: tensor.to(tensors[0].device, dtype) for what, tensor in called.items()}
    for what, tensor in found.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{name} of {what} holds NaN or infinite values: merge a checkpoint from before "
                "training diverged"
            )
    return list(found.values())


def _finished(name: str, merged: Tensor, like: Tensor) -> Tensor:
    result = merged.to(like.dtype)
    seen = result if like.dtype == torch.float64 else result.float()
    if not bool(torch.isfinite(seen).all()):
        raise InputError(
            f"{name} leaves the range of {_dtype(like)} when merged: convert the first model to "
            "float32, or use smaller weights or scale"
        )
    return result


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
