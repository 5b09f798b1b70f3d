"""Merge methods: functions on the tensors of one name, kept as data.

A method is a function plus one `@merge_method` line; nothing else has to know it. `merge` applies
them to whole state dicts.

References:
    Wortsman et al., "Model soups", ICML 2022 (average).
    Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985 (SLERP).
    Ilharco et al., "Editing models with task arithmetic", ICLR 2023.
    Yadav et al., "TIES-merging: resolving interference when merging models", NeurIPS 2023.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from regraft.errors import InputError

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


def computed_in(tensors: Sequence[Tensor]) -> torch.dtype:
    """Return the dtype to merge tensors in: float64 where one of them has it, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


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
    # What the differences are compared in later; in another dtype the last one kept might fall out.
    dtypes = {k: computed_in([*(state[k] for state in states), base[k]]) for k in names}
    thresholds: list[float | None] = []
    for state in states:  # one model's magnitudes at a time
        sizes = [_difference(state[k], base[k], dtypes[k]).abs_().flatten() for k in names]
        thresholds.append(_threshold(torch.cat(sizes), density) if sizes else 0.0)
    return thresholds


def _difference(tensor: Tensor, base: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype=dtype) - base.to(tensor.device, dtype)


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
        # Equal magnitudes at the threshold are all kept. It may be a float64 of another tensor's,
        # which would be rounded to compare it with float32 ones.
        vector = torch.where(sizes.double() >= bound, vector, 0)
        trimmed.append(vector)
        total.add_(vector, alpha=weight)
    elected = total.sign()
    total = torch.zeros_like(base)
    for vector, weight in zip(trimmed, weights, strict=True):
        agrees = (vector.sign() == elected) & (elected != 0)
        total.add_(torch.where(agrees, vector, 0), alpha=weight)
        mass.add_(agrees.to(base.dtype), alpha=weight)
    return base + torch.where(mass != 0, total / mass, 0).mul_(scale)
