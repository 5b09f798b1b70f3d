"""The numerical proof that a permutation leaves a network's function alone: f(πθ) = f(θ).

Weights that training has not touched (ones, zeros, one scale for all layers) hide mistakes, so the
proof is given at θ with noise on every tensor and other entries in masks, in float64.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regraft.errors import InputError, RegraftError
from regraft.symmetry.spec.permutation import Permutation
from regraft.symmetry.spec.spec import PermutationSpec

from .export import Outputs, cast, counted, double, inputs_of, unfused
from .varied import varied, whole


class SymmetryError(RegraftError):
    """A permutation changes what a network computes; the message names the group."""


@dataclass(frozen=True)
class Proof:
    """What random permutations of everything at once did to the outputs.

    Attributes:
        error: Largest relative error max |f(πθ) - f(θ)| / max |f(θ)| over the outputs.
        guilty: A group to blame where it is too large, or None.
        noise: Relative error that rounding alone can cause; measured only where it may matter.
        unsteady: Whether the error is one that rounding alone can cause.
    """

    error: float
    guilty: str | None = None
    noise: float = 0.0
    unsteady: bool = False


def check(
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: Any,
    *,
    seeds: int = 1,
    tolerance: float = 1e-10,
    outputs: Outputs = None,
) -> float:
    """Return the largest relative error max |f(πθ) - f(θ)| / max |f(θ)| over random permutations.

    All groups are permuted together, in float64 on the CPU; the network itself is left as it was.
    The first permutation leaves no unit in its place, the others are uniformly random. Takes memory
    for five to six copies of the weights.

    Args:
        spec: The symmetries to prove.
        model: The network.
        example_inputs: What its forward is called with, as for `trace`.
        seeds: Number of permutations, at least 1.
        tolerance: Largest relative error.
        outputs: Which outputs count, as for `trace`.

    Raises:
        SymmetryError: The error is larger; the group that causes it is named.
        InputError: The network is not the one of the spec, is not deterministic, does not run in
            float64, or its outputs do not depend on its weights.
    """
    if seeds < 1:
        raise InputError(f"seeds={seeds}: a proof needs at least one permutation")
    worst = 0.0
    for seed in range(seeds):
        proof = prove(spec, model, example_inputs, seed=seed, tolerance=tolerance, outputs=outputs)
        if proof.guilty:
            raise SymmetryError(
                f"permuting the group {proof.guilty!r} changes the outputs of {type(model).__name__} by "
                f"{proof.error:.1e} of their size (at most {tolerance:g} is allowed): the "
                "specification is wrong there"
            )
        worst = max(worst, proof.error)
    return worst


def prove(
    spec: PermutationSpec,
    model: nn.Module,
    example_inputs: Any,
    *,
    seed: int = 0,
    tolerance: float = 1e-10,
    outputs: Outputs = None,
) -> Proof:
    """Permute every group and say what it did, and which group is to blame if it did something.

    Raises:
        InputError: As `check`.
    """
    network = double(model)
    inputs = cast(example_inputs, torch.float64)
    state, before = _tried(spec, network, inputs, seed, outputs)
    if _error(before, _outputs(network, state, inputs, outputs)) > 0:
        raise InputError(
            f"{type(model).__name__} gives other outputs each time it is called in evaluation mode: "
            "switch off what is random in its forward"
        )
    names = list(spec.groups)
    permutation = deranged(spec, seed) if seed == 0 else spec.random(seed)

    def error_of(count: int) -> float:
        some = {name: permutation[name] for name in names[:count]}
        return _error(before, _outputs(network, spec.apply(state, some), inputs, outputs))

    whole = error_of(len(names)) if names else 0.0
    if whole <= tolerance:
        if names:
            shaken = _outputs(network, _shaken(state, seed, 1.0), inputs, outputs)
            _refuse_indifferent(network, before, shaken)
        return Proof(whole)
    noise = _error(before, _outputs(network, _shaken(state, seed, 2.0**-52), inputs, outputs))
    allowed = max(tolerance, 100 * noise)
    if whole <= allowed:
        return Proof(whole, noise=noise, unsteady=True)
    passes, fails = 0, len(names)
    while fails - passes > 1:
        middle = (passes + fails) // 2
        if error_of(middle) <= allowed:
            passes = middle
        else:
            fails = middle
    return Proof(whole, names[fails - 1], noise)


def _tried(
    spec: PermutationSpec, network: nn.Module, inputs: Any, seed: int, outputs: Outputs
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return the weights of the proof and the outputs with them.

    Masks and tables are given other entries: all of them, or where the network does not run with those
    (an index out of its range, a mask that must leave something), the ones that the spec moves, or
    masks alone, or none.
    """
    state = roughened(network, inputs, seed)
    tables = whole(state)
    moved = [name for name in tables if spec.aliases.get(name, name) in spec.by_tensor]
    masks = [name for name in tables if state[name].dtype == torch.bool]
    for names in dict.fromkeys(map(tuple, (tables, moved, masks))):
        if not names:
            continue
        other = state | varied(state, names, seed)
        with contextlib.suppress(InputError):
            before = _outputs(network, other, inputs, outputs)
            if all(t.isfinite().all() for t in before if t.is_floating_point()):
                return other, before
    return state, _outputs(network, state, inputs, outputs)


def deranged(spec: PermutationSpec, seed: int) -> Permutation:
    """Return a permutation that is one cycle of all units in each group, so that none stays."""
    permutation = {}
    for name, perm in spec.random(seed).items():
        order = perm.reshape(-1, perm.shape[-1])
        cycles = torch.empty_like(order).scatter_(1, order, order.roll(-1, 1))
        permutation[name] = cycles.reshape(perm.shape)
    return permutation


def _refuse_indifferent(
    network: nn.Module, before: Sequence[Tensor], shaken: Sequence[Tensor]
) -> None:
    """Refuse a proof in which a wrong permutation would have passed: other weights, equal outputs."""
    if _error(before, shaken) == 0:
        raise InputError(
            f"the outputs of {type(network).__name__} do not depend on its weights at these inputs, so "
            "that nothing is proved: give other example inputs (random ones), or trace with "
            "check_it=False"
        )


def _shaken(state: Mapping[str, Tensor], seed: int, scale: float) -> dict[str, Tensor]:
    """Return a state dict each number of which was changed by about `scale` of itself."""
    generator = torch.Generator().manual_seed(seed)
    return {
        k: v * (1 + scale * torch.randn(v.shape, generator=generator, dtype=torch.float64)).abs()
        if v.is_floating_point() or v.is_complex()
        else v
        for k, v in state.items()
    }


def roughened(network: nn.Module, inputs: Any, seed: int = 0) -> dict[str, Tensor]:
    """Return the state dict of a network with noise on every floating tensor, tied ones alike.

    Noise has a tenth of the tensor's own deviation, and where it has none, of 1 for vectors and of
    1 / sqrt(fan-in) for the rest; variances stay positive. Running statistics are those of the
    inputs, where they have any: with others, activations can grow from layer to layer until
    rounding alone changes the outputs.
    """
    rough: dict[str, Tensor] = {}
    by_tensor: dict[int, Tensor] = {}
    for name, kept in network.state_dict(keep_vars=True).items():
        if not isinstance(kept, Tensor):
            continue
        tensor = kept.detach()
        if id(kept) not in by_tensor:
            moves = (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel() > 0
            by_tensor[id(kept)] = _rough(name, tensor, seed) if moves else tensor.clone()
        rough[name] = by_tensor[id(kept)]
    return rough | _settled(network, rough, inputs)


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
    network.load_state_dict(dict(state), strict=False)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    if not norms:
        return {}
    # A batch of one value a channel has no statistics: the ones there are have to do. A forward that
    # fails is refused in words where it is needed.
    with contextlib.suppress(Exception), in_double(network):
        for norm in norms.values():
            norm.train()
            norm.momentum = 1.0
        args, kwargs = inputs_of(inputs)
        network(*args, **kwargs)
    statistics = {}
    for name, norm in norms.items():
        norm.momentum = momenta[name]
        norm.eval()
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None or not variance.isfinite().all():
            continue
        if not torch.equal(mean, before[f"{name}.running_mean"]):
            # A channel that hardly varies over a few positions must not be blown up.
            floor = 0.1 * variance.mean() + 1e-3
            statistics[f"{name}.running_mean"] = mean.clone()
            statistics[f"{name}.running_var"] = variance + floor
    return statistics


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
def _outputs(
    network: nn.Module, state: Mapping[str, Tensor], inputs: Any, chosen: Outputs
) -> list[Tensor]:
    network.load_state_dict(dict(state), strict=False)  # extra state is no tensor and stays
    args, kwargs = inputs_of(inputs)
    try:
        with in_double(network):
            output = network(*args, **kwargs)
    # Somebody else's forward may raise anything, and more so in another dtype.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{type(network).__name__} does not run in float64 on these example inputs "
            f"({type(error).__name__}: {reason}): trace with check_it=False to go without a proof"
        ) from error
    leaves = torch.utils._pytree.tree_leaves(counted(output, chosen))
    outputs = [t.detach() for t in leaves if isinstance(t, Tensor)]
    if outputs and all(t.is_floating_point() and not t.isfinite().any() for t in outputs):
        raise InputError(
            f"no output of {type(network).__name__} is a finite number at these inputs: give others"
        )
    return outputs


@contextlib.contextmanager
def in_double(network: nn.Module) -> Iterator[None]:
    """Keep a network in evaluation mode and everything it makes in float64."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with unfused(network), _Double():
            yield
    finally:
        torch.set_default_dtype(default)


class _Double(TorchFunctionMode):
    """Let a network that computes parts of itself in float32 compute them in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        if getattr(func, "__name__", "") in ("_grouped_mm", "grouped_mm"):
            return _grouped(*args, **(kwargs or {}))
        wide = {torch.float32: torch.float64, torch.complex64: torch.complex128}
        swap = torch.utils._pytree.tree_map_only(
            torch.dtype, lambda d: wide.get(d, d), (args, kwargs or {})
        )
        return func(*swap[0], **swap[1])


def _grouped(
    rows: Tensor, weights: Tensor, offs: Tensor, bias: Tensor | None = None, **_: Any
) -> Tensor:
    """Return the rows [s, i] of each group times its matrix [g, i, o]: torch has no float64 kernel."""
    out = rows.new_zeros(len(rows), weights.shape[-1])
    start = 0
    for i, end in enumerate(offs.tolist()):
        out[start:end] = rows[start:end] @ weights[i]
        start = end
    return out if bias is None else out + bias


def _error(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return the largest relative error over the outputs; infinite where one cannot be compared."""
    return max((_difference(x, y) for x, y in zip(a, b, strict=True)), default=0.0)


_HUGE = 1e30
"""Masked entries are filled with numbers of this size; they must not set the scale of the rest."""


def _difference(x: Tensor, y: Tensor) -> float:
    if x.is_complex():
        x, y = torch.view_as_real(x), torch.view_as_real(y)
    if not x.is_floating_point():
        return 0.0 if torch.equal(x, y) else float("inf")
    plain = x.isfinite() & (x.abs() < _HUGE)
    same = torch.where(plain, True, (x == y) | (x.isnan() & y.isnan()))
    if not same.all() or not y[plain].isfinite().all():
        return float("inf")
    if not plain.any():
        return 0.0
    scale = x[plain].abs().max().item()
    return (x[plain] - y[plain]).abs().max().item() / (scale or 1.0)
