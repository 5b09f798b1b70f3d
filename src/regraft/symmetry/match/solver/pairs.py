"""What is compared: pairs of tensors, A's and B's, of the same name.

Two checkpoints are one pair of state dicts. The gradients of two networks along a trajectory are
many; they are added up as they come, and of a tensor that only the groups of one block permute no
more is kept than the running sum of G_A G_Bᵀ over the units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.symmetry.spec.spec import PermutationSpec

from .blocks import NEVER_COMPARED, Block, Term, make_blocks
from .rows import rows


class Pairs:
    """Pairs of state dicts (weights, gradients, displacements) that one permutation is to match.

    Running statistics of norms and integer tensors are not compared; they follow. No scale
    invariance is taken out: the gain is the plain inner product, as in weight matching.

    Args:
        spec: Groups of the architecture.
        exclude: Shell patterns of further tensors not to compare, e.g. `"head.*"`.
        importance: Pattern -> factor on the inner product of the tensors it matches; 1 by default.
        summed: Keep only running sums where they suffice; for many pairs.
        dtype: Dtype of the contractions: by default float64 where a tensor is, else float32.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        *,
        exclude: Iterable[str] = (),
        importance: Mapping[str, float] | None = None,
        summed: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.spec = spec
        self.exclude = tuple(exclude)
        self.importance = dict(importance or {})
        self.summed = summed
        self.dtype = dtype
        self.blocks: list[Block] = make_blocks(spec, compared=self._compared)
        self.count = 0
        self.stacked: dict[str, list[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self.sums: dict[str, Tensor] = {}
        self.names = tuple(dict.fromkeys(t for b in self.blocks for t in b.tensors))
        self._terms = self._constant_terms() if summed else {}

    def add(
        self,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        *,
        names: tuple[str, str] = ("a", "b"),
    ) -> None:
        """Add a pair; tensors that are absent from both say nothing.

        The tensors are kept, not copied: do not change them in place while they are needed. Of a
        mapping that is not a dict, such as a checkpoint that reads from its file, only the mapping is
        kept, and every tensor is asked for when it is contracted.

        Args:
            a: Tensors of the network that stays.
            b: Tensors of the network that is permuted.
            names: What to call the two in an error.

        Raises:
            InputError: A tensor is missing from one, of another shape, complex, or not finite.
        """
        for state, what in ((a, names[0]), (b, names[1])):
            refuse_not_finite(state, what)
        kept = tuple(dict(state) if isinstance(state, dict) else state for state in (a, b))
        for name in self.names:
            if name not in a and name not in b:
                continue
            pair = self._pair(name, a, b, names)
            if pair is None:
                continue
            if name not in self._terms:
                self.stacked.setdefault(name, []).append((kept[0], kept[1]))
                known, new = self._dtypes.get(name, torch.float32), self._dtype(pair)
                self._dtypes[name] = new if new.itemsize > known.itemsize else known
                continue
            for term in self._terms[name]:
                x, y = (rows(t, term, {}).to(self._dtype(pair)) for t in pair)
                total = torch.mm(x, y.T).mul_(self.factor(name))
                known = self.sums.get(term.group)
                self.sums[term.group] = total if known is None else known.add_(total)
        self.count += 1

    def of(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the pairs of a tensor, both on A's device."""
        for a, b in self.stacked[name]:
            left = a[name].detach()
            yield left, b[name].detach().to(left.device)

    def factor(self, name: str) -> float:
        """Return the factor on a tensor's inner product."""
        for pattern, value in self.importance.items():
            if fnmatch(name, pattern):
                return float(value)
        return 1.0

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the dtype in which a tensor that is kept is contracted."""
        return self.dtype or self._dtypes[name]

    def _dtype(self, pair: tuple[Tensor, Tensor]) -> torch.dtype:
        if self.dtype is not None:
            return self.dtype
        return torch.float64 if any(t.dtype == torch.float64 for t in pair) else torch.float32

    def _compared(self, name: str) -> bool:
        excluded = name.endswith(NEVER_COMPARED) or any(fnmatch(name, p) for p in self.exclude)
        return not excluded and self.factor(name) != 0.0

    def _pair(
        self, name: str, a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: tuple[str, str]
    ) -> tuple[Tensor, Tensor] | None:
        shape = tuple(self.spec.shapes[name])
        both = []
        for state, what in ((a, names[0]), (b, names[1])):
            if name not in state:
                raise InputError(
                    f"{what} has no tensor {name!r} and the other has: expected two states of the "
                    "same architecture"
                )
            tensor = state[name].detach()
            if tuple(tensor.shape) != shape:
                raise InputError(
                    f"{what}: {name} has shape {tuple(tensor.shape)}, expected {shape}: both must "
                    "be of the one architecture"
                )
            if tensor.is_complex():
                raise InputError(f"{what}: {name} is complex: expected real tensors")
            both.append(tensor)
        if not all(t.is_floating_point() for t in both):
            return None
        return both[0], both[1].to(both[0].device)

    def _constant_terms(self) -> dict[str, list[Term]]:
        """Return the terms of tensors whose gains no other block changes, each term once."""
        terms_of: dict[str, list[Term]] = {}
        moved: set[str] = set()
        for block in self.blocks:
            for term in block.terms:
                if term.moving:
                    moved.add(term.tensor)
                known = terms_of.setdefault(term.tensor, [])
                if not any((t.group, t.axis) == (term.group, term.axis) for t in known):
                    known.append(term)
        return {name: terms for name, terms in terms_of.items() if name not in moved}


def refuse_not_finite(state: Mapping[str, Tensor], what: str) -> None:
    """Refuse a state dict that holds NaN or infinity.

    Raises:
        InputError: A tensor is not finite; the first is named, with how many entries.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # Formats of eight bits lack most operations; every one of their values is a float32.
        values = tensor.detach() if tensor.element_size() > 1 else tensor.detach().float()
        # The sum is one cheap pass; only where it is not finite are the entries looked at.
        if math.isfinite(values.sum().item()):
            continue
        wrong = int((~torch.isfinite(values)).sum())
        if wrong:
            raise InputError(
                f"{what}: {name} has {wrong} of {tensor.numel()} entries that are NaN or infinite: "
                "expected a checkpoint of a network that trained to the end"
            )
