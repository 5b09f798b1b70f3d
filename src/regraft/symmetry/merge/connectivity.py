"""How networks are connected: loss and accuracy along a line between two, and over a plane of three.

References:
    Frankle et al., "Linear mode connectivity and the lottery ticket hypothesis", ICML 2020,
    section 2 (the barrier).
    Garipov et al., "Loss surfaces, mode connectivity, and fast ensembling of DNNs", NeurIPS 2018,
    section A.7 (planes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from regraft.errors import InputError
from regraft.models.copying import copy_module
from regraft.protocols import BatchSource
from regraft.train.measure import evaluate

from .merge import is_trained, merge
from .repair import Batches, RepairMode, repair_, reset_batch_norm_

_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a network scores on one or several sets of batches.

    Attributes:
        loss: Mean cross-entropy in nats, averaged over the sets.
        accuracy: Percent, averaged over the sets.
        losses: Loss on each set.
        accuracies: Accuracy on each set.
    """

    loss: float
    accuracy: float
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Scores along the line (1 - l) A + l B.

    Attributes:
        at: Positions l, from 0 to 1.
        scores: Scores at each.
    """

    at: tuple[float, ...]
    scores: tuple[Measured, ...]

    @property
    def loss_barrier(self) -> float:
        """Return max over l of L(l) - [(1 - l) L(0) + l L(1)], in nats."""
        return self._barrier([score.loss for score in self.scores])

    @property
    def accuracy_barrier(self) -> float:
        """Return max over l of [(1 - l) a(0) + l a(1)] - a(l), in points of percent."""
        return self._barrier([-score.accuracy for score in self.scores])

    @property
    def middle(self) -> Measured:
        """Return the scores nearest to l = 1/2."""
        return min(zip(self.at, self.scores, strict=True), key=lambda p: abs(p[0] - 0.5))[1]

    def _barrier(self, values: list[float]) -> float:
        first, last = values[0], values[-1]
        return max(v - ((1 - x) * first + x * last) for x, v in zip(self.at, values, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, the barriers with it."""
        return {
            "at": list(self.at),
            "scores": [score.to_dict() for score in self.scores],
            "loss_barrier": self.loss_barrier,
            "accuracy_barrier": self.accuracy_barrier,
            "middle": self.middle.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Scores over the plane through three networks, in units of Euclidean length.

    Attributes:
        x: Coordinates along θ_2 - θ_1.
        y: Coordinates along what of θ_3 - θ_1 is orthogonal to it.
        loss: Loss at (x[j], y[i]) as loss[i][j].
        accuracy: Accuracy, likewise.
        points: Coordinates of the three networks.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]
    accuracy: tuple[tuple[float, ...], ...]
    points: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def measure(model: nn.Module, sources: Sequence[BatchSource]) -> Measured:
    """Return the scores of a network on each source, and their means.

    Args:
        model: The network; the batches must lie on its device.
        sources: Sets of batches, e.g. the test images of every data set.

    Raises:
        InputError: There is no source.
    """
    if not sources:
        raise InputError("no batches to measure on: give at least one source")
    figures = [evaluate(model, source) for source in sources]
    losses = tuple(f["loss"] for f in figures)
    accuracies = tuple(f["accuracy"] for f in figures)
    return Measured(
        loss=math.fsum(losses) / len(figures),
        accuracy=math.fsum(accuracies) / len(figures),
        losses=losses,
        accuracies=accuracies,
    )


def interpolation(
    model: nn.Module,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    sources: Sequence[BatchSource],
    *,
    points: int = 25,
    statistics: Batches | None = None,
    repair: RepairMode = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Curve:
    """Measure f((1 - l) A + l B) at equally spaced l from 0 to 1.

    Args:
        model: A network of the architecture; it is not changed.
        a: State dict A.
        b: State dict B, aligned or not.
        sources: What to measure on; each is read once and kept, as far as 1 GiB holds it.
        points: Number of positions, the ends included.
        statistics: Batches to repair every network between the ends with; None repairs none.
        repair: How; see `regraft.symmetry.merge.repair.repair_`.
        progress: Called with the points measured and their number.

    Raises:
        InputError: Fewer than two points, no source, or states that do not fit.
    """
    if points < 2:
        raise InputError(f"points={points}: expected at least the two ends")
    twin, kept = copy_module(model), [Kept(source) for source in sources]
    buffers = buffer_names(model)
    at = tuple(i / (points - 1) for i in range(points))
    scores = []
    for i, x in enumerate(at):
        ends = {0.0: a, 1.0: b}
        state = ends.get(x) or merge([a, b], weights=[1 - x, x], buffers=buffers)
        twin.load_state_dict(dict(state))
        if statistics is not None and x not in ends:
            repair_(twin, [a, b], statistics, weights=[1 - x, x], mode=repair)
        scores.append(measure(twin, kept))
        if progress:
            progress(i + 1, points)
    return Curve(at=at, scores=tuple(scores))


def plane(
    model: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    sources: Sequence[BatchSource],
    *,
    points: int = 11,
    margin: float = 0.2,
    statistics: Batches | None = None,
) -> Plane:
    """Measure the networks of the plane through three state dicts on a grid.

    With u = θ_2 - θ_1 and v = θ_3 - θ_1 - <θ_3 - θ_1, u> u / |u|^2, the network at (x, y) is
    θ_1 + x u / |u| + y v / |v|, over the trained tensors; running statistics follow the same
    combination unless they are taken anew.

    Args:
        model: A network of the architecture; it is not changed.
        states: Three state dicts.
        sources: What to measure on.
        points: Grid positions along each axis.
        margin: How far the grid reaches beyond the three, as a share of their extent.
        statistics: Batches to take BatchNorm statistics from at every point.

    Raises:
        InputError: Not three states, fewer than two points, or states on one line.
    """
    if len(states) != 3:
        raise InputError(f"{len(states)} states: a plane goes through three")
    if points < 2:
        raise InputError(f"points={points}: expected at least two along each axis")
    buffers = buffer_names(model)
    gram = _gram(states, set(buffers))
    length = math.sqrt(gram[0])
    along = gram[1] / length if length else 0.0
    height = math.sqrt(max(gram[2] - along**2, 0.0))
    if min(length, height) <= 1e-6 * math.sqrt(max(gram[0], gram[2])):
        raise InputError("the three states lie on one line: a plane needs another one beside it")
    corners = ((0.0, 0.0), (length, 0.0), (along, height))
    xs, ys = (_grid([c[i] for c in corners], points, margin) for i in (0, 1))
    twin, kept = copy_module(model), [Kept(source) for source in sources]
    rows = []
    for y in ys:
        row = []
        for x in xs:
            third = y / height
            second = (x - along * third) / length
            weights = [1 - second - third, second, third]
            twin.load_state_dict(merge(states, weights=weights, buffers=buffers))
            if statistics is not None:
                reset_batch_norm_(twin, statistics)
            row.append(measure(twin, kept))
        rows.append(row)
    return Plane(
        x=xs,
        y=ys,
        loss=tuple(tuple(m.loss for m in row) for row in rows),
        accuracy=tuple(tuple(m.accuracy for m in row) for row in rows),
        points=corners,
    )


def buffer_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the tensors of a state dict that are no parameters."""
    # With duplicates: a tied parameter has several names, and none of them is a buffer.
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return tuple(name for name in model.state_dict() if name not in parameters)


def _gram(states: Sequence[Mapping[str, Tensor]], buffers: set[str]) -> tuple[float, float, float]:
    """Return <u, u>, <u, w> and <w, w> for u = θ_2 - θ_1 and w = θ_3 - θ_1, in float64."""
    sums = [0.0, 0.0, 0.0]
    for name, tensor in states[0].items():
        if is_trained(name, tensor, buffers):
            first, second, third = (state[name].double().flatten() for state in states)
            u, w = second - first, third - first
            for i, value in enumerate((u @ u, u @ w, w @ w)):
                sums[i] += value.item()
    return sums[0], sums[1], sums[2]


def _grid(values: list[float], points: int, margin: float) -> tuple[float, ...]:
    room = margin * (max(values) - min(values))
    low, high = min(values) - room, max(values) + room
    return tuple(low + (high - low) * i / (points - 1) for i in range(points))


class Kept:
    """A batch source whose first epoch is kept in memory once read, if it is small enough.

    Args:
        source: The source; its batches do not depend on the epoch for what this is used for.
        limit: Bytes up to which batches are kept.
    """

    def __init__(self, source: BatchSource, limit: int = _CACHE_BYTES) -> None:
        self.source = source
        self.limit = limit
        self._batches: list[tuple[Tensor, Tensor, int]] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def batches(
        self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield what the source yields in its first epoch, whatever the epoch."""
        if self._batches is not None and (start, rank, world) == (0, 0, 1):
            yield from self._batches
            return
        kept: list[tuple[Tensor, Tensor, int]] | None = []
        total = 0
        for batch in self.source.batches(0, start=start, rank=rank, world=world):
            total += batch[0].numel() * batch[0].element_size()
            if kept is not None:
                kept = [*kept, batch] if total <= self.limit else None
            yield batch
        if (start, rank, world) == (0, 0, 1):
            self._batches = kept
