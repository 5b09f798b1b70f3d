"""Which units do the same things: matching by what they put out on data.

gains[u, v] of a group is the correlation (or covariance) over all samples and positions of A's unit
u and B's unit v, at the outputs of every layer that makes the group's units: a convolution, a linear
or an embedding layer whose output axis is permuted. Unlike weights, the gains of a group do not
depend on the permutation of others, so that one assignment a tree of groups is exact.

References:
    Li et al. 2015, Convergent learning; Ainsworth et al. 2023 (arXiv 2209.04836), section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from regraft.errors import InputError
from regraft.models.modes import evaluating
from regraft.symmetry.merge.repair import Batches, images
from regraft.symmetry.spec.group import Group, Site
from regraft.symmetry.spec.spec import PermutationSpec

from .solver.blocks import ancestry, make_blocks
from .solver.pairs import Pairs, refuse_not_finite

_SAMPLES = 2**14
"""Positions of one batch that enter a product at once."""


@dataclass(frozen=True, eq=False)
class Activations:
    """A signal for `match`: what the units put out.

    Attributes:
        model: The architecture; its own weights are not used.
        batches: Inputs, one pass; the same for both networks. Labels are not needed.
        statistic: "correlation", which disregards the scale of each unit, or "covariance".
    """

    model: nn.Module
    batches: Batches
    statistic: Literal["correlation", "covariance"] = "correlation"

    def pairs(
        self, spec: PermutationSpec, a: Mapping[str, Tensor], b: Mapping[str, Tensor]
    ) -> Pairs:
        """Return the gains of all groups whose units some layer puts out.

        Raises:
            InputError: No batches, no such layer, an unknown statistic, or outputs that are not
                finite.
        """
        if self.statistic not in ("correlation", "covariance"):
            raise InputError(
                f"statistic={self.statistic!r}: expected 'correlation' or 'covariance'"
            )
        for state, what in ((a, "a"), (b, "b")):
            refuse_not_finite(state, what)
        where = producers(spec, self.model)
        if not where:
            raise InputError(
                "no group's units are the outputs of a layer: match by weights instead"
            )
        sums = {key: _Sums() for key in where}
        with torch.no_grad(), evaluating(self.model):
            for x in images(self.batches, self.model):
                left, right = (_outputs(self.model, s, x, where, sums) for s in (a, b))
                for key, total in sums.items():
                    if key in left and key in right:
                        total.add(left[key], right[key])
        if not any(total.count for total in sums.values()):
            raise InputError("there are no batches to take activations from: give at least one")
        pairs = Pairs(spec)
        pairs.blocks = make_blocks(spec, joint=True)
        for (group, module, _), total in sums.items():
            if not total.count:
                continue
            gains = total.gains(self.statistic)
            if not torch.isfinite(gains).all():
                raise InputError(
                    f"the outputs of {module} are not finite on these batches: match by weights"
                )
            known = pairs.sums.get(group)
            pairs.sums[group] = gains if known is None else known + gains
        pairs.count = 1
        return pairs


Key = tuple[str, str, int]
"""(group, module, number of the site)."""


def producers(spec: PermutationSpec, model: nn.Module) -> dict[Key, Callable[[Tensor], Tensor]]:
    """Return for each site on the output axis of a layer how to read its units off the output.

    Returns:
        (group, module name, number of the site) -> function: output -> float64 [samples, units],
        the positions of a unit counted as samples of their own; their mean where another group
        arranges them, so that which is which is not known. What groups within the units arrange is
        left to those.
    """
    modules = dict(model.named_modules())
    owners = {
        f"{prefix}.{name}" if prefix else name: (prefix, name)
        for prefix, module in modules.items()
        for name, _ in module.named_parameters(recurse=False)
    }
    readers: dict[Key, Callable[[Tensor], Tensor]] = {}
    for group in spec:
        for number, site in enumerate(group.sites):
            # A parametrised layer keeps its weight elsewhere, and is not recognised; that is safe.
            prefix, parameter = owners.get(site.tensor, ("", ""))
            axis = _output_axis(modules[prefix], site) if parameter == "weight" else None
            if axis is None or site.over is not None:
                continue
            index, unordered = _own(spec, group, site)
            if index.shape[2]:
                readers[(group.name, prefix, number)] = _reader(index, axis, unordered)
    return readers


def _own(spec: PermutationSpec, group: Group, site: Site) -> tuple[Tensor, bool]:
    """Return the positions that no group within the units arranges, and whether others do."""
    index, unordered = site.index, False
    for other, place in spec.by_tensor[site.tensor]:
        if other is group or place.axis != site.axis or group.name in ancestry(spec, other.name):
            continue
        if other.name not in ancestry(spec, group.name):
            unordered |= bool(torch.isin(index, place.index).any())
    for other, place in spec.by_tensor[site.tensor]:
        inner = other is not group and group.name in ancestry(spec, other.name)
        if inner and place.axis == site.axis and place.over is None:
            index = index[:, :, ~torch.isin(index[0, 0], place.index)]
    return index, unordered


def _output_axis(module: nn.Module, site: Site) -> int | None:
    """Return the axis of a layer's outputs along which a site's units lie, if they do."""
    if isinstance(module, nn.Linear):
        return -1 if site.axis == 0 else None
    if isinstance(module, nn.Embedding):
        return -1 if site.axis == 1 else None
    if isinstance(module, _ConvNd):
        transposed = isinstance(module, _ConvTransposeNd)
        out = 1 if transposed and module.groups == 1 else None if transposed else 0
        return -1 - len(module.kernel_size) if site.axis == out else None
    return None


def _reader(index: Tensor, axis: int, unordered: bool) -> Callable[[Tensor], Tensor]:
    m, n, r = index.shape

    def read(output: Tensor) -> Tensor:
        values = output.detach().movedim(axis, -1).flatten(0, -2)
        values = values[:, index.flatten().to(values.device)].reshape(-1, m * n, r)
        if unordered:
            return values.mean(2)
        return values.transpose(1, 2).reshape(-1, m * n)

    return read


def _outputs(
    model: nn.Module,
    state: Mapping[str, Tensor],
    x: Tensor,
    where: Mapping[Key, Callable[[Tensor], Tensor]],
    known: Mapping[Key, Any],
) -> dict[Key, Tensor]:
    outputs: dict[Key, list[Tensor]] = {}
    handles = []
    modules = dict(model.named_modules())
    for key, read in where.items():

        def keep(
            module: nn.Module, args: Any, output: Any, key: Key = key, read: Any = read
        ) -> None:
            if isinstance(output, Tensor):
                outputs.setdefault(key, []).append(read(output))

        handles.append(modules[key[1]].register_forward_hook(keep))
    like = next((p for p in model.parameters() if p.is_floating_point()), x)
    moved = {
        k: v.to(like.device, like.dtype) if v.is_floating_point() else v.to(like.device)
        for k, v in state.items()
    }
    try:
        functional_call(model, moved, x)
    finally:
        for handle in handles:
            handle.remove()
    return {key: torch.cat(parts) for key, parts in outputs.items() if key in known}


class _Sums:
    """Sums over samples of x, y, x², y² and x yᵀ, around the first batch's means, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.parts: list[Tensor] = []
        self.shift: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        if self.shift is None:
            self.shift = x.double().mean(0), y.double().mean(0)
        for u, v in zip(x.split(_SAMPLES), y.split(_SAMPLES), strict=True):
            u, v = u.double() - self.shift[0], v.double() - self.shift[1]
            parts = [u.sum(0), v.sum(0), u.square().sum(0), v.square().sum(0), u.T @ v]
            known = self.parts or [torch.zeros_like(part) for part in parts]
            self.parts = [p + q for p, q in zip(known, parts, strict=True)]
            self.count += len(u)

    def gains(self, statistic: str) -> Tensor:
        n = self.count
        mx, my, xx, yy, xy = (part / n for part in self.parts)
        covariance = xy - mx[:, None] * my[None, :]
        if statistic == "covariance":
            return covariance
        sx, sy = ((s - m.square()).clamp_min(0.0).sqrt() for s, m in ((xx, mx), (yy, my)))
        scale = sx[:, None] * sy[None, :]
        # A unit that is always the same is like no other.
        constant = scale <= 1e-12 * scale.max().clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where(constant, 0.0, covariance / scale.where(~constant, 1.0))
