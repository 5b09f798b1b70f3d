"""The channels that a layer puts out: which layers can be corrected, by what, and to what.

A correction y -> a y + b for each channel is fused into the layer that made y, so a network keeps
its architecture and its names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and standard deviation of each channel, float64 [C], the deviation with divisor n."""

    mean: Any
    std: Any


@dataclass(frozen=True, eq=False)
class Channels:
    """A layer whose outputs can be corrected channel by channel.

    Attributes:
        module: The layer.
        axis: Axis of its outputs along which the channels lie.
    """

    module: nn.Module
    axis: int

    def flat(self, output: Tensor) -> Tensor:
        """Return outputs as float64 [C, positions]."""
        return output.detach().movedim(self.axis, 0).flatten(1).double()

    def of(self, output: Tensor) -> Moments:
        """Return the moments of one batch of outputs."""
        values = self.flat(output)
        return Moments(values.mean(1), values.std(1, correction=0))

    def corrected(self, output: Tensor, measured: Moments, goal: Moments) -> Tensor:
        """Return outputs with the goal's moments instead of those measured."""
        scale, shift = _correction(measured, goal)
        if getattr(self.module, "bias", None) is None:
            shift = torch.zeros_like(shift)
        shape = [1] * output.dim()
        shape[self.axis] = -1
        wide = output.double() * scale.view(shape) + shift.view(shape)
        return wide.to(output.dtype)


class _Stop(Exception):  # noqa: N818
    """Ends a forward pass as soon as what is measured has been seen."""


@dataclass(frozen=True, eq=False)
class Repairable:
    """The layers of a network, as far as their channels can be corrected.

    Attributes:
        layers: Those that can be, in the order in which they run.
        reused: Those that run several times in one pass or share their weights with another layer:
            one correction cannot give each of their uses its own goal.
    """

    layers: dict[str, Channels]
    reused: tuple[str, ...]


def repairable(model: nn.Module, example: Tensor) -> Repairable:
    """Return the layers whose channels can be corrected, and those that only their reuse forbids.

    Convolutions, linear layers and BatchNorms; left out are layers that a BatchNorm follows (it
    undoes any correction), those that give the network's output, whatever without weights comes
    after them, those that do not run, and those of other libraries that do more than their base
    class, such as an activation or a standardisation of the weights.

    Args:
        model: The network, in evaluation mode.
        example: A batch of its inputs.
    """
    sites: dict[str, Channels] = {}
    outputs: dict[str, Tensor] = {}
    normalised: set[str] = set()
    strange: set[str] = set()
    reused: set[str] = set()
    uses: dict[int, int] = {}
    for parameter in (p for m in model.modules() for p in m.parameters(recurse=False)):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    # Each output goes on as a copy of a leaf of its own, so that the graph says what comes of it.
    leaves: dict[int, tuple[str, Tensor]] = {}
    followed: set[str] = set()

    def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        followed.update(_sources((inputs, named), leaves))
        if isinstance(module, _NormBase):
            normalised.update(k for k, y in outputs.items() if inputs and y is inputs[0])

    def after(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):
                return None
            if name in sites or uses[id(module.weight)] > 1:
                reused.add(name)
            axis = -1 if isinstance(module, nn.Linear) else _channel_axis(module, output)
            site = sites.setdefault(name, Channels(module, axis))
            # torch's own layers are affine in weight and bias; others have to show it.
            if not type(module).__module__.startswith("torch.nn.") and inputs:
                plain = _is_affine(site, inputs[0].detach(), output.detach())
                strange.update(() if plain else (name,))
            leaf = output.detach().requires_grad_()
            leaves[id(leaf)] = (name, leaf)
            passed_on = leaf.clone()  # which may be changed in place, as a leaf may not
            outputs.setdefault(name, passed_on)
            return passed_on

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                handle = module.register_forward_pre_hook(before, with_kwargs=True)
                stack.callback(handle.remove)
            known = isinstance(module, nn.Linear | _ConvNd | _NormBase)
            if known and isinstance(getattr(module, "weight", None), nn.Parameter):
                stack.callback(module.register_forward_hook(after(name)).remove)
        with torch.enable_grad():
            result = model(example)
    # Where nothing can be followed back from the output, the layer that ran last gave it.
    last = (_sources(result, leaves) or set(list(sites)[-1:])) - followed
    apart = normalised | last | strange
    return Repairable(
        {k: c for k, c in sites.items() if k not in apart | reused},
        tuple(k for k in sites if k in reused - apart),
    )


def _sources(values: Any, leaves: Mapping[int, tuple[str, Tensor]]) -> set[str]:
    """Return the layers that values were computed from without another layer in between."""
    nodes = [v.grad_fn for v in tree_leaves(values) if isinstance(v, Tensor)]
    visited: set[Any] = set()
    sources: set[str] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        nodes += [following for following, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if id(leaf) in leaves:
            sources.add(leaves[id(leaf)][0])
    return sources


def _is_affine(site: Channels, x: Tensor, output: Tensor) -> bool:
    """Whether a change of weight and bias changes the outputs of a layer as it should."""
    module: Any = site.module
    size = output.shape[site.axis]
    zero, one = (torch.full((size,), v, dtype=torch.float64, device=x.device) for v in (0.0, 1.0))
    measured, goal = Moments(zero, one), Moments(zero + 0.25, one * 0.5)
    before = {k: v.detach().clone() for k, v in module.named_parameters(recurse=False)}
    affine_(site, measured, goal)
    with torch.no_grad():
        # Not through the module itself, whose hooks are at work.
        changed = module.forward(x)
        for name, parameter in module.named_parameters(recurse=False):
            parameter.copy_(before[name])
    expected = site.corrected(output, measured, goal)
    return torch.allclose(changed, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def _channel_axis(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, _NormBase):
        return 1
    # Convolutions also take a single image without the axis of the batch.
    return output.dim() - len(getattr(module, "kernel_size", ())) - 1


def moments(
    model: nn.Module,
    sites: Mapping[str, Channels],
    batches: Iterable[Tensor],
    *,
    stop: bool = False,
) -> dict[str, Moments]:
    """Return the moments of each layer's outputs over all batches together.

    Args:
        model: The network.
        sites: The layers.
        batches: Inputs, each batch once.
        stop: End each pass after the last of the layers has run once.
    """
    sums: dict[str, list[Any]] = {name: [0, 0.0, 0.0] for name in sites}

    def hook_of(name: str, site: Channels) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            values = site.flat(output)
            # Merging means and squared deviations keeps the digits that a sum of squares loses.
            count, mean, squares = sums[name]
            n = values.shape[1]
            own = values.mean(1)
            spread = (values - own[:, None]).square_().sum(1)
            change = own - mean
            total = count + n
            sums[name] = [
                total,
                mean + change * (n / total),
                squares + spread + change.square() * (count * n / total),
            ]
            if stop:
                raise _Stop

        return hook

    with contextlib.ExitStack() as stack:
        for name, site in sites.items():
            stack.callback(site.module.register_forward_hook(hook_of(name, site)).remove)
        for x in batches:
            with contextlib.suppress(_Stop):
                model(x)
    return {k: Moments(mean, (squares / n).sqrt()) for k, (n, mean, squares) in sums.items()}


def _correction(measured: Moments, goal: Moments) -> tuple[Tensor, Tensor]:
    """Return scale and shift, [C] each, with scale * y + shift having the goal's moments."""
    # A channel that is constant but for rounding has no deviation to be scaled.
    floor = 1e-6 * (measured.mean.abs() + goal.std) + torch.finfo(torch.float32).tiny
    scale = torch.where(measured.std > floor, goal.std / measured.std.clamp(min=floor), 1.0)
    return scale, goal.mean - scale * measured.mean


@torch.no_grad()
def affine_(site: Channels, measured: Moments, goal: Moments) -> None:
    """Change a layer so that its outputs have the goal's moments instead of those measured.

    A layer without a bias is scaled only.
    """
    scale, shift = _correction(measured, goal)
    module: Any = site.module
    weight = module.weight
    if isinstance(module, _ConvTransposeNd):
        # [in, out / groups, ...]: the outputs of a group lie behind the inputs of that group.
        groups = module.groups
        split = weight.double().view(groups, -1, *weight.shape[1:])
        rows = scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))
        weight.copy_((split * rows).view_as(weight))
    else:
        weight.copy_(weight.double() * scale.view(-1, *[1] * (weight.dim() - 1)))
    if module.bias is not None:
        module.bias.copy_(module.bias.double() * scale + shift)
