"""Σ <A, π(B)>, what matching maximises, in float64 and tensor by tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.symmetry.spec.permutation import Permutation

from .blocks import Block
from .nested import unit_maps
from .pairs import Pairs


class MatchingObjective:
    """The objective as a function of the permutation; only tensors that moved are looked at again.

    Products and short sums are in the tensors' own precision, the rest is in float64. ||A - π(B)||² is
    ||A||² + ||B||² minus twice this: a permutation keeps norms.
    """

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self._values: dict[str, tuple[tuple[Tensor, ...], float]] = {}
        groups = pairs.spec.by_tensor
        self._groups = {n: [g.name for g, _ in groups[n]] for n in pairs.stacked}

    def __call__(self, now: Permutation) -> float:
        """Return the objective of all tensors."""
        value = sum(self._tensor(name, now) for name in self.pairs.stacked)
        return value + self._summed(now)

    def of(self, block: Block, now: Permutation) -> float:
        """Return the objective of the tensors that a block permutes."""
        value = sum(self._fresh(n, now) for n in block.tensors if n in self.pairs.stacked)
        return value + self._summed(now, block)

    def _tensor(self, name: str, now: Permutation) -> float:
        key = tuple(now[g] for g in self._groups[name])
        known = self._values.get(name)
        if known is not None and all(x is y for x, y in zip(known[0], key, strict=True)):
            return known[1]
        value = self._fresh(name, now)
        self._values[name] = key, value
        return value

    def _fresh(self, name: str, now: Permutation) -> float:
        spec, total = self.pairs.spec, 0.0
        dtype = self.pairs.dtype_of(name)
        still = all(_still(now[g]) for g in self._groups[name])
        for a, b in self.pairs.of(name):
            moved = b if still else spec.apply_to(name, b, now)
            total += inner(a.to(dtype), moved.to(dtype))
        return self.pairs.factor(name) * total

    def _summed(self, now: Permutation, only: Block | None = None) -> float:
        total = 0.0
        for name, matrix in self.pairs.sums.items():
            if only is not None and name not in only.free:
                continue
            block = next(b for b in self.pairs.blocks if name in b.free)
            units = unit_maps(block, now)[name].to(matrix.device)
            total += matrix.gather(1, units[:, None]).sum(dtype=torch.float64).item()
        return total


def inner(a: Tensor, b: Tensor) -> float:
    """Return <a, b>, short stretches summed in the tensors' own precision and those in float64."""
    product = torch.mul(a, b).flatten()
    whole = len(product) // 1024 * 1024
    total = product[whole:].sum(dtype=torch.float64)
    # Summing to float64 throughout is many times as slow in torch.
    return float(total + product[:whole].view(-1, 1024).sum(1).sum(dtype=torch.float64))


def _still(permutation: Tensor) -> bool:
    return bool((permutation == torch.arange(permutation.shape[-1])).all())
