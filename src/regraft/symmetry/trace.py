"""Find the permutation symmetries of any network, and prove them.

`torch.export` gives the network as ATen operations; each says which positions of which tensors are
permuted alike (`walk`, `rules_*`); what is the same is brought together (`classes`), and units that
may change places become groups (`groups`). Nothing is written by hand for an architecture, and a
numerical proof f(πθ) = f(θ) stands at the end.

References:
    Ainsworth et al., "Git Re-Basin", ICLR 2023 (the symmetry and its hand-written specifications).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .check import check, guilty_groups
from .spec import PermutationSpec, Pin
from .tracing import Walk, classes, export, groups, pins, walk


def trace(
    model: nn.Module, example_inputs: Any, *, check_it: bool = True, tolerance: float = 1e-10
) -> PermutationSpec:
    """Return the permutation symmetries of a network.

    The network is traced in evaluation mode and left as it was. Inputs and outputs stay in place; of
    an output with an attribute or key `logits`, as language models give, only the logits count.

    Args:
        model: Any network that `torch.export` can trace.
        example_inputs: What its forward is called with: a tensor, a tuple of positional arguments,
            or a dict of keyword arguments. Batch and image size should be small, but valid.
        check_it: Prove the result numerically; groups that do not pass are dropped with a warning.
        tolerance: Largest relative error of the proof.

    Raises:
        InputError: The network cannot be traced, or gives other outputs each time it is called.
    """
    graph = export(model, example_inputs)
    state = dict(model.state_dict(keep_vars=True))
    aliases = tied(state)
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    found = walk(graph, dict(shapes), aliases=aliases)
    spec = _spec(found, shapes, aliases)
    if not check_it:
        return spec
    bad: set[str] = set()
    while True:
        error, guilty = guilty_groups(spec, model, example_inputs, tolerance=tolerance)
        if not guilty:
            return replace(spec, checked=error)
        bad |= set(guilty)
        warnings.warn(
            f"the group {guilty[0]!r} does not leave the outputs of {type(model).__name__} as they "
            f"are (relative error {error:.1e}): it stays in place; please report this",
            stacklevel=2,
        )
        spec = without(spec, guilty, "the numerical proof failed")


def tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the other names of tied tensors -> the first name."""
    first: dict[int, str] = {}
    return {
        name: first[id(tensor)]
        for name, tensor in state.items()
        if first.setdefault(id(tensor), name) != name
    }


def without(spec: PermutationSpec, names: list[str], reason: str) -> PermutationSpec:
    """Return a spec in which some groups, and what they hold, stay in place."""
    dropped = set(names)
    for group in spec:
        if group.parent in dropped:
            dropped.add(group.name)
    new = tuple(
        Pin(s.tensor, s.axis, spec.shapes[s.tensor][s.axis], s.index.numel(), reason)
        for group in spec
        if group.name in dropped
        for s in group.sites
    )
    kept = {name: g for name, g in spec.groups.items() if name not in dropped}
    return replace(spec, groups=kept, pins=(*spec.pins, *new))


def _spec(
    found: Walk, shapes: Mapping[str, tuple[int, ...]], aliases: Mapping[str, str]
) -> PermutationSpec:
    rank = {name: i for i, name in enumerate(shapes)}
    order = {place: rank[place[0]] * 8 + place[1] for place in found.axes}
    over = {}
    for place, axis in found.over.items():
        copies = found.axes[place].nodes.reshape(-1, found.axes[place].size).shape[0]
        over[place] = (axis, shapes[place[0]][axis] // copies)
    resolved = classes(found)
    made, moving = groups(resolved, order, over)
    kernels = [place for place in found.axes if place[1] > 1]
    return PermutationSpec(
        groups=made,
        shapes=dict(shapes),
        aliases=dict(aliases),
        pins=pins(resolved, order, moving, kernels),
    )


__all__ = ["check", "tied", "trace", "without"]
