"""The numerical proof that a permutation leaves a network's function alone: f(πθ) = f(θ).

Weights that training has not touched (ones, zeros, one scale for all layers) hide mistakes, so the
proof is given at θ with noise on every tensor, in float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from regraft.errors import InputError, RegraftError

from .export import cast, double, evaluating, inputs_of
from .spec import PermutationSpec


class SymmetryError(RegraftError):
    """A permutation changes what a network computes; the message names the group."""


def check(
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: Any,
    *,
    seeds: int = 1,
    tolerance: float = 1e-10,
) -> float:
    """Return the largest relative error max |f(πθ) - f(θ)| / max |f(θ)| over random permutations.

    All groups are permuted together, in float64 on the CPU; the network itself is left as it was.

    Args:
        spec: The symmetries to prove.
        model: The network.
        example_inputs: What its forward is called with, as for `trace`.
        seeds: Number of random permutations.
        tolerance: Largest relative error.

    Raises:
        SymmetryError: The error is larger; the group that causes it is named.
        InputError: The network is not the one of the spec, or is not deterministic.
    """
    worst = 0.0
    for seed in range(seeds):
        error, guilty = guilty_groups(
            spec, model, example_inputs, seed=seed, tolerance=tolerance
        )
        if guilty:
            raise SymmetryError(
                f"permuting the group {guilty[0]!r} changes the outputs of {type(model).__name__} by "
                f"{error:.1e} of their size (at most {tolerance:g} is allowed): the specification "
                "is wrong there"
            )
        worst = max(worst, error)
    return worst


def guilty_groups(
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: Any,
    *,
    seed: int = 0,
    tolerance: float = 1e-10,
) -> tuple[float, list[str]]:
    """Return the relative error of permuting every group, and a group to blame if it is too large.

    Raises:
        InputError: The network is not the one of the spec, or gives other outputs each time.
    """
    network = double(model)
    state = roughened(network.state_dict(), seed)
    inputs = cast(example_inputs, torch.float64)
    before = _outputs(network, state, inputs)
    if _error(before, _outputs(network, state, inputs)) > 0:
        raise InputError(
            f"{type(model).__name__} gives other outputs each time it is called in evaluation mode: "
            "switch off what is random in its forward"
        )
    names = list(spec.groups)

    def error_of(count: int) -> float:
        permutation = spec.random(seed, names[:count])
        return _error(before, _outputs(network, spec.apply(state, permutation), inputs))

    whole = error_of(len(names)) if names else 0.0
    if whole <= tolerance:
        return whole, []
    passes, fails = 0, len(names)
    while fails - passes > 1:
        middle = (passes + fails) // 2
        if error_of(middle) <= tolerance:
            passes = middle
        else:
            fails = middle
    return whole, [names[fails - 1]]


def roughened(state: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Return a state dict with noise on every floating tensor, tied tensors alike.

    Noise has a tenth of the tensor's own deviation, and of 1 where it has none; variances stay
    positive.
    """
    found: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            found[name] = tensor
            continue
        if tensor.data_ptr() in seen and seen[tensor.data_ptr()].shape == tensor.shape:
            found[name] = seen[tensor.data_ptr()]
            continue
        generator = torch.Generator().manual_seed(_number(name, seed))
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        spread = tensor.std().item() if tensor.numel() > 1 else 0.0
        if name.endswith("running_var"):
            found[name] = tensor * (1 + 0.5 * torch.tanh(noise))
        elif spread > 0:
            found[name] = tensor + 0.1 * spread * noise
        else:
            scale = 0.1 if tensor.ndim < 2 else tensor[0].numel() ** -0.5
            found[name] = tensor + scale * noise
        seen[tensor.data_ptr()] = found[name]
    return found


def _number(name: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little")


@torch.no_grad()
def _outputs(network: nn.Module, state: Mapping[str, Tensor], inputs: Any) -> list[Tensor]:
    network.load_state_dict(dict(state))
    args, kwargs = inputs_of(inputs)
    with evaluating(network):
        return floating(network(*args, **kwargs))


def floating(output: Any) -> list[Tensor]:
    """Return the floating tensors of an output; its logits alone where it has them."""
    logits = output.get("logits") if isinstance(output, Mapping) else None
    logits = getattr(output, "logits", logits)
    leaves = torch.utils._pytree.tree_leaves(output if logits is None else logits)
    return [t.detach() for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


def _error(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return the largest relative error over the outputs; infinite where one is not a number."""
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if not (x.isfinite() == y.isfinite()).all():
            return float("inf")
        known = x.isfinite()
        if not known.any():
            continue
        scale = x[known].abs().max().item()
        difference = (x[known] - y[known]).abs().max().item()
        worst = max(worst, difference / (scale or 1.0))
    return worst
