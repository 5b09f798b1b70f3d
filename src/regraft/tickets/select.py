"""Exact top-k thresholds of scores that move a little between calls.

Edge-popup keeps M = 1[S >= tau] with tau the (1 + round(s (n - 1)))-th smallest score, at every
forward pass. Selecting from scratch costs several passes over the scores; here one is enough. Scores
near the last threshold (the *band*) are followed by index: the order statistic inside the band
proposes a threshold, and a single counting pass proves it (exactly `rank` scores lie below, so it is
the order statistic of all of them). Only when the proof fails is the selection made from scratch.

References:
    Ramanujan et al., "What's hidden in a randomly weighted neural network?", CVPR 2020, section 3.
    Chijiwa et al., "Pruning randomly initialized neural networks with iterative randomization",
    NeurIPS 2021, algorithm 1.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from regraft._shapes import Bool, Float
from regraft.errors import InputError

_SMALL = 4096
_BAND_SHARE = 0.01
_CHUNK = 1 << 16  # values worked on at a time: they and their flags stay in the second-level cache
_CACHED_SELECTORS = 512


def pruned_count(n: int, sparsity: float) -> int:
    """Return how many of `n` scores lie strictly below the threshold: round(s (n - 1)).

    At least one weight is always kept, even at sparsity 1.

    Raises:
        InputError: `sparsity` outside [0, 1].
    """
    if not isinstance(sparsity, (int, float)) or not 0.0 <= sparsity <= 1.0:
        raise InputError(
            f"sparsity={sparsity}: expected the fraction of weights to remove, in [0, 1]"
        )
    return round(sparsity * (n - 1))


def topk_mask(
    scores: Float[Tensor, "*shape"], sparsity: float, *, magnitude: bool = False
) -> Bool[Tensor, "*shape"]:
    """Return the mask that keeps the highest scores, bool, shaped like `scores`.

    M = 1[S >= tau], tau the (1 + round(s (n - 1)))-th smallest score; scores equal to tau are all
    kept. With `magnitude`, |S| takes the place of S.

    Raises:
        InputError: `sparsity` outside [0, 1].
    """
    values = scores.detach().abs() if magnitude else scores.detach()
    return values >= kth_value(values, pruned_count(values.numel(), sparsity))


def kth_value(values: Float[Tensor, "*shape"], rank: int) -> Float[Tensor, ""]:
    """Return the value with exactly `rank` values sorted before it, a 0-dim tensor.

    Plain torch: it works inside `vmap`, `torch.export` and on every device.
    """
    flat = values.reshape(-1)
    if flat.is_cuda:
        return torch.sort(flat).values[rank]
    return torch.kthvalue(flat, rank + 1).values


class ThresholdSelector:
    """Exact order statistic of one set of arrays, called again and again as they change.

    The state is only a hint: every answer is proved by a counting pass over all values or selected
    from scratch, so the result never depends on what was seen before. One selector serves one set of
    arrays and keeps the indices of the band, about one percent of the values.

    Args:
        magnitude: Select on absolute values.

    Attributes:
        calls: How often a threshold was asked for.
        recentred: How often the band was taken anew around the old threshold (one more pass).
        selected: How often the threshold was selected from scratch.
    """

    def __init__(self, *, magnitude: bool = False) -> None:
        self.magnitude = magnitude
        self.calls = 0
        self.recentred = 0
        self.selected = 0
        self._band: list[np.ndarray] = []
        self._below = 0
        self._threshold = 0.0
        self._reach = 0.0
        self._flags = np.empty((2, _CHUNK), dtype=bool)

    def __deepcopy__(self, memo: dict[int, object]) -> ThresholdSelector:
        return ThresholdSelector(magnitude=self.magnitude)

    def __reduce__(self) -> tuple[object, ...]:
        return (_restore, (self.magnitude,))

    def __call__(self, arrays: Sequence[np.ndarray], rank: int) -> float:
        """Return the value that has exactly `rank` values sorted before it.

        Args:
            arrays: One-dimensional arrays of one dtype; the values of all of them count together.
            rank: Between 0 and the number of values - 1.
        """
        self.calls += 1
        if sum(a.size for a in arrays) <= _SMALL:
            return self._select(arrays, rank)
        answer = self._follow(arrays, rank)
        if answer is None:
            answer = self._recentre(arrays, rank)
        if answer is None:
            answer = self._from_scratch(arrays, rank)
        self._threshold = answer
        return answer

    def _follow(self, arrays: Sequence[np.ndarray], rank: int) -> float | None:
        """Propose from the band of earlier calls, prove by counting: one pass."""
        if len(self._band) != len(arrays):
            return None
        try:
            parts = [a[index] for a, index in zip(arrays, self._band, strict=True)]
        except IndexError:  # not the arrays the band was taken from
            return None
        candidate = self._in_band(parts, rank)
        if candidate is None:
            return None
        below = self._count_below(arrays, candidate)
        if below == rank:
            return candidate
        # With ties the candidate is also right when equal values lie on both sides of `rank`.
        if below < rank < self._count_below(arrays, np.nextafter(candidate, np.inf)):
            return candidate
        return None

    def _recentre(self, arrays: Sequence[np.ndarray], rank: int) -> float | None:
        """Take the band anew around the last threshold: exact if it holds the answer, one pass."""
        if self._reach <= 0:
            return None
        self.recentred += 1
        low, high = self._threshold - self._reach, self._threshold + self._reach
        parts = self._take_band(arrays, low, high)
        answer = self._in_band(parts, rank)
        size = sum(p.size for p in parts)
        wanted = _BAND_SHARE * sum(a.size for a in arrays)
        self._reach *= min(max(wanted / max(size, 1), 0.25), 4.0)
        return answer

    def _from_scratch(self, arrays: Sequence[np.ndarray], rank: int) -> float:
        self.selected += 1
        values = self._values(arrays)
        reach = int(_BAND_SHARE * values.size / 2)
        low, high = max(rank - reach, 0), min(rank + reach, values.size - 1)
        values.partition((low, rank, high))
        edges = float(values[low]), float(values[high])
        self._take_band(arrays, *edges)
        self._reach = (edges[1] - edges[0]) / 2
        return float(values[rank])

    def _values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        joined = arrays[0].copy() if len(arrays) == 1 else np.concatenate(arrays)
        return np.abs(joined, out=joined) if self.magnitude else joined

    def _select(self, arrays: Sequence[np.ndarray], rank: int) -> float:
        values = self._values(arrays)
        values.partition(rank)
        return float(values[rank])

    def _in_band(self, parts: Sequence[np.ndarray], rank: int) -> float | None:
        rank -= self._below
        return self._select(parts, rank) if 0 <= rank < sum(p.size for p in parts) else None

    def _count_below(self, arrays: Sequence[np.ndarray], limit: float) -> int:
        flags = self._flags[0]
        count = 0
        for a in arrays:
            for start in range(0, a.size, _CHUNK):
                chunk = a[start : start + _CHUNK]
                out = flags[: chunk.size]
                count += np.count_nonzero(np.less(chunk, a.dtype.type(limit), out=out))
                if self.magnitude:
                    count -= np.count_nonzero(np.less_equal(chunk, a.dtype.type(-limit), out=out))
        return int(count)

    def _take_band(self, arrays: Sequence[np.ndarray], low: float, high: float) -> list[np.ndarray]:
        """Index the values in [low, high], count those below, and return the values found."""
        self._band, parts, below = [], [], 0
        for a in arrays:
            positions = []
            for start in range(0, a.size, _CHUNK):
                chunk = a[start : start + _CHUNK]
                size = np.abs(chunk) if self.magnitude else chunk
                under, inside = self._flags[0, : chunk.size], self._flags[1, : chunk.size]
                below += np.count_nonzero(np.less(size, a.dtype.type(low), out=under))
                np.less_equal(size, a.dtype.type(high), out=inside)
                positions.append(np.flatnonzero(np.not_equal(under, inside, out=inside)) + start)
            self._band.append(np.concatenate(positions))
            parts.append(a[self._band[-1]])
        self._below = int(below)
        return parts


def _restore(magnitude: bool) -> ThresholdSelector:
    return ThresholdSelector(magnitude=magnitude)


_selectors: OrderedDict[tuple[int, int], ThresholdSelector] = OrderedDict()


@torch.library.custom_op("regraft::kth_value", mutates_args=())
def kth_value_op(values: Tensor, rank: int) -> Tensor:
    """`kth_value` as one opaque operator, so that compiled graphs keep the fast exact selection."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return kth_value(values, rank).clone()
    key = (values.data_ptr(), values.numel())
    selector = _selectors.pop(key, None) or ThresholdSelector()
    _selectors[key] = selector
    while len(_selectors) > _CACHED_SELECTORS:
        _selectors.popitem(last=False)
    return values.new_tensor(selector([flat_array(values)], rank))


@kth_value_op.register_fake
def _(values: Tensor, rank: int) -> Tensor:
    return values.new_empty(())


def flat_array(tensor: Tensor) -> np.ndarray:
    """Return a float32 or float64 CPU tensor as a flat NumPy array, in memory order if it is dense.

    Raises:
        RuntimeError, TypeError: Inside functorch transforms and for dtypes NumPy lacks.
    """
    tensor = tensor.detach()
    if not tensor.is_contiguous():
        order = sorted(range(tensor.dim()), key=lambda d: -tensor.stride(d))
        tensor = tensor.permute(order)  # channels_last and the like become a plain view
    return tensor.reshape(-1).numpy()
