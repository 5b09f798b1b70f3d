"""Parts without a share in what was traced: they do not follow the units that they read.

A network is traced as it is evaluated, with one example. What `forward` leaves out then, an auxiliary
head or the head of another task, stays in place while the units of the trunk move, and it reads other
units than before when the network is trained again, or called with other inputs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from regraft.symmetry.spec.group import NOT_REACHED, TRAINING_ONLY, UNUSED, Pin
from regraft.symmetry.spec.spec import PermutationSpec

from .check import in_double
from .export import cast, double, inputs_of


def marked(spec: PermutationSpec, model: nn.Module, example_inputs: Any) -> PermutationSpec:
    """Return a spec whose pins tell what training uses and evaluation does not, and what neither does.

    Of that, only tensors are meant that may read units which move: one of their axes is as long as an
    axis that moves. Where the network does not run in training mode, all unused ones may be read then.
    """
    lengths = {spec.shapes[s.tensor][s.axis] for group in spec for s in group.sites}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    unused = {p.tensor for p in spec.pins if p.reason == UNUSED and p.tensor in parameters}
    unused = {name for name in unused if lengths.intersection(spec.shapes[name])}
    if not unused:
        return spec
    used = _used_in_training(model, example_inputs, unused)

    def explained(pin: Pin) -> Pin:
        if pin.reason != UNUSED or pin.tensor not in unused:
            return pin
        return replace(pin, reason=TRAINING_ONLY if pin.tensor in used else NOT_REACHED)

    return replace(spec, pins=tuple(map(explained, spec.pins)))


def _used_in_training(model: nn.Module, inputs: Any, names: Collection[str]) -> Collection[str]:
    if any(p.is_meta for p in model.parameters()):
        return names
    twin = double(model)
    named = {n: p for n, p in twin.named_parameters(remove_duplicate=False) if n in names}
    taken = _Taken({id(p) for p in named.values()})
    args, kwargs = inputs_of(cast(inputs, torch.float64))
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), in_double(twin), taken:
            twin.train()
            twin(*args, **kwargs)
    # Somebody else's forward may raise anything, and in training ask for labels.
    except Exception:
        return names
    return {name for name, p in named.items() if id(p) in taken.ids}


class _Taken(TorchFunctionMode):
    """Note which of some tensors any operation takes."""

    def __init__(self, wanted: set[int]) -> None:
        super().__init__()
        self.wanted = wanted
        self.ids: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf) in self.wanted:
                self.ids.add(id(leaf))
        return func(*args, **(kwargs or {}))


__all__ = ["marked"]
