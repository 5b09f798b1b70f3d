"""Find the permutation symmetries of any network, and prove them.

`torch.export` gives the network as ATen operations; each says which positions of which tensors are
permuted alike (`walk`, `rules_*`); what is the same is brought together (`classes`), and units that
may change places become groups (`groups`). Nothing is written by hand for an architecture, and a
numerical proof f(πθ) = f(θ) stands at the end.

References:
    Ainsworth et al., "Git Re-Basin", ICLR 2023 (the symmetry and its hand-written specifications).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from regraft.symmetry.spec.group import UNUSED, Pin
from regraft.symmetry.spec.printing import said
from regraft.symmetry.spec.spec import PermutationSpec

from .check import check, prove
from .classes import classes
from .export import Outputs, export
from .groups import groups, pins
from .left_behind import marked
from .rule import Walk
from .walk import walk

_WORTHLESS = 1e-3
"""A wrong permutation may change an output by no more than this."""


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    check_it: bool = True,
    tolerance: float = 1e-10,
    outputs: Outputs = None,
) -> PermutationSpec:
    """Return the permutation symmetries of a network.

    The network is traced in evaluation mode and left as it was. Inputs and outputs stay in place;
    beside `logits`, hidden states, attentions and caches do not count as outputs.

    Args:
        model: Any network that `torch.export` can trace.
        example_inputs: What its forward is called with: a tensor, a tuple of positional arguments,
            or a dict of keyword arguments. Batch and image size should be small, but valid.
        check_it: Prove the result numerically; groups that do not pass are dropped with a warning.
        tolerance: Largest relative error of the proof.
        outputs: Which outputs count, by name (`"last_hidden_state"`, `["logits", "boxes"]`) or number:
            an encoder of which only `pooler_output` is used may permute its residual stream.

    Warns of parameters that only training uses, such as auxiliary heads, or that the example does not
    reach, such as the head of another task: they stay as they are while the units that they may read
    move; see `PermutationSpec.left_behind`.

    Raises:
        InputError: The network cannot be traced, gives no output of a chosen name, or the proof cannot
            be given; see `check`.
    """
    graph = export(model, example_inputs, outputs)
    state = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor)  # and no extra state
    }
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    aliases = tied(state)
    shared = overlapping(state, aliases)
    walked = walk(graph, shapes, aliases=aliases, shared=shared)
    floating = {name for name, tensor in state.items() if tensor.is_floating_point()}
    spec = _spec(walked, shapes, aliases, floating)
    if check_it:
        spec = _proved(spec, model, example_inputs, tolerance, outputs)
    spec = marked(spec, model, example_inputs)
    if spec.left_behind:
        warnings.warn(f"{type(model).__name__}: {said(spec)}", stacklevel=2)
    return spec


def _proved(
    spec: PermutationSpec, model: nn.Module, example_inputs: Any, tolerance: float, outputs: Outputs
) -> PermutationSpec:
    """Return the spec with its proof, without the groups that do not pass."""
    while True:
        proof = prove(spec, model, example_inputs, tolerance=tolerance, outputs=outputs)
        if proof.unsteady:
            proved = proof.error < _WORTHLESS
            warnings.warn(
                f"rounding alone changes the outputs of {type(model).__name__} by {proof.noise:.0e} at "
                "these inputs: its symmetries are "
                + (f"proved to {proof.error:.0e} only" if proved else "not proved"),
                stacklevel=3,
            )
            return replace(spec, checked=_bound(proof.error) if proved else None)
        if not proof.guilty:
            return replace(spec, checked=_bound(proof.error))
        warnings.warn(
            f"the group {proof.guilty!r} does not leave the outputs of {type(model).__name__} as they "
            f"are (relative error {proof.error:.1e}): it stays in place; please report this",
            stacklevel=3,
        )
        spec = without(spec, [proof.guilty], "the numerical proof failed")


_FINE = 1e-13
"""An error below which only the order of sums decides, which threads may change from run to run."""


def _bound(error: float) -> float:
    """Return the power of ten that an error stays below: equal on every run."""
    return 0.0 if error == 0 else max(_FINE, float(f"1e{math.ceil(math.log10(error))}"))


def tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the other names of tied tensors -> the first name.

    Tied are names of one tensor, and tensors that are the same memory in the same layout.
    """
    first: dict[object, str] = {}
    ties = {}
    for name, tensor in state.items():
        keys: list[object] = [id(tensor)]
        if _memory(tensor):
            layout = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
            keys.append((_memory(tensor), *layout))
        known = next((first[key] for key in keys if key in first), None)
        if known is not None:
            ties[name] = known
        for key in keys:
            first.setdefault(key, known or name)
    return ties


def overlapping(state: Mapping[str, Tensor], aliases: Mapping[str, str]) -> set[str]:
    """Return the names of tensors in the memory of others that are not simply tied to them."""
    by_memory: dict[int, set[str]] = {}
    for name, tensor in state.items():
        if _memory(tensor):
            by_memory.setdefault(_memory(tensor), set()).add(aliases.get(name, name))
    return {name for names in by_memory.values() if len(names) > 1 for name in names}


def _memory(tensor: Tensor) -> int:
    return 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()


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
    walked: Walk,
    shapes: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str],
    floating: Collection[str],
) -> PermutationSpec:
    rank = {name: i for i, name in enumerate(shapes)}
    order = {place: rank[place[0]] * 8 + place[1] for place in walked.axes}
    over = {}
    for place, axis in walked.over.items():
        copies = walked.axes[place].nodes.reshape(-1, walked.axes[place].size).shape[0]
        over[place] = (axis, shapes[place[0]][axis] // copies)
    resolved = classes(walked)
    made, moving = groups(resolved, order, over)
    idle = tuple(
        Pin(name, axis, size, size, UNUSED)
        for name, shape in shapes.items()
        if name in floating and name not in aliases and not walked.knows(name)
        for axis, size in enumerate(shape)
        if size > 1
    )
    return PermutationSpec(
        groups=made,
        shapes=dict(shapes),
        aliases=dict(aliases),
        pins=(*pins(resolved, order, moving, walked.kernels), *idle),
    )


__all__ = ["check", "tied", "trace", "without"]
