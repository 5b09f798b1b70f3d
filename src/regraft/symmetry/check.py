"""The numerical proof that a permutation leaves a network's function alone: f(πθ) = f(θ).

Weights that training has not touched (ones, zeros, one scale for all layers) hide mistakes, so the
proof is given at θ with noise on every tensor, in float64.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regraft.errors import InputError, RegraftError

from .spec import PermutationSpec
from .tracing.export import cast, double, evaluating, inputs_of


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
        error, guilty = guilty_groups(spec, model, example_inputs, seed=seed, tolerance=tolerance)
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
    inputs = cast(example_inputs, torch.float64)
    state = roughened(network, inputs, seed)
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


def roughened(network: nn.Module, inputs: Any, seed: int = 0) -> dict[str, Tensor]:
    """Return the state dict of a network with noise on parameters and running statistics.

    Noise has a tenth of the tensor's own deviation, and where it has none, of 1 for vectors and of
    1 / sqrt(fan-in) for the rest; variances stay positive, and tied tensors alike. Running
    statistics are those of the inputs, where they have any: with others, activations can grow from
    layer to layer until rounding alone changes the outputs.
    """
    trained = {id(p) for p in network.parameters()}
    found: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            moves = id(tensor) in trained and tensor.is_floating_point()
            seen[id(tensor)] = _rough(name, tensor.detach(), seed) if moves else tensor.detach()
        found[name] = seen[id(tensor)]
    statistics = [k for k in found if k.endswith(("running_mean", "running_var"))]
    return (
        found
        | {k: _rough(k, found[k], seed) for k in statistics}
        | _settled(network, found, inputs)
    )


@torch.no_grad()
def _settled(network: nn.Module, state: Mapping[str, Tensor], inputs: Any) -> dict[str, Tensor]:
    """Return running statistics of BatchNorm layers that fit the inputs."""
    norms = {
        name: module
        for name, module in network.named_modules()
        if name
        and isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_var is not None
    }
    network.load_state_dict(dict(state))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    # A batch of one value a channel has no statistics: the ones there are have to do.
    with contextlib.suppress(ValueError), _in_double(network):
        for norm in norms.values():
            norm.train()
            norm.momentum = 1.0
        args, kwargs = inputs_of(inputs)
        network(*args, **kwargs)
    found = {}
    for name, norm in norms.items():
        norm.momentum = momenta[name]
        norm.eval()
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None or not variance.isfinite().all():
            continue
        if not torch.equal(mean, before[f"{name}.running_mean"]):
            # A channel that hardly varies over a few positions must not be blown up.
            floor = 0.1 * variance.mean() + 1e-3
            found[f"{name}.running_mean"] = mean.clone()
            found[f"{name}.running_var"] = variance + floor
    return found


def _rough(name: str, tensor: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(_number(name, seed))
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    if name.endswith("running_var"):
        return tensor * (1 + 0.5 * torch.tanh(noise))
    spread = tensor.std().item() if tensor.numel() > 1 else 0.0
    if spread > 0:
        return tensor + 0.1 * spread * noise
    return tensor + (0.1 if tensor.ndim < 2 else tensor[0].numel() ** -0.5) * noise


def _number(name: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little")


@torch.no_grad()
def _outputs(network: nn.Module, state: Mapping[str, Tensor], inputs: Any) -> list[Tensor]:
    network.load_state_dict(dict(state))
    args, kwargs = inputs_of(inputs)
    with _in_double(network):
        return floating(network(*args, **kwargs))


@contextlib.contextmanager
def _in_double(network: nn.Module) -> Iterator[None]:
    """Keep a network in evaluation mode and everything it makes in float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with evaluating(network), _Double():
            yield
    finally:
        torch.set_default_dtype(default)


class _Double(TorchFunctionMode):
    """Let a network that computes parts of itself in float32 compute them in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        swap = torch.utils._pytree.tree_map_only(
            torch.dtype, lambda d: torch.float64 if d == torch.float32 else d, (args, kwargs or {})
        )
        return func(*swap[0], **swap[1])


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
