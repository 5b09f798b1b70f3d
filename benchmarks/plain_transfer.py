"""GMT and FGMT as one writes them from the paper: pairs in lists, every sum anew, with scipy."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from regraft import streams
from regraft.protocols import BatchSource
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.transfer.gradients import EPOCHS
from regraft.symmetry.transfer.trajectory import Trajectory

State = dict[str, Tensor]


@dataclass
class Plain:
    """What a plain transfer found and where its time went, in seconds."""

    weights: State
    cosine: float
    gradients: float
    matching: float


def plain_transfer(
    line: Trajectory,
    target: State,
    spec: PermutationSpec,
    model: nn.Module,
    source: BatchSource,
    *,
    count: int,
    all_pairs: bool,
    max_sweeps: int = 100,
) -> Plain:
    """Transfer with all pairs anew at each step (GMT), or with the newest alone (FGMT).

    Pair t is of the batches that `regraft.symmetry.transfer.transfer` draws for it, however often it is
    computed.
    """
    states = [state for _, state in line]
    now = {g.name: torch.arange(g.size) for g in spec}
    pairs: list[tuple[State, State]] = []
    spent = [0.0, 0.0]
    cosine = 0.0
    for s in range(1, len(states)):
        start = time.perf_counter()
        pairs = [] if all_pairs else pairs
        for t in range(s) if all_pairs else [s - 1]:
            moved = spec.apply(_difference(states[t], states[0]), now)
            point = {k: v + moved[k] for k, v in target.items()}
            batches = list(itertools.islice(_batches(source, t * EPOCHS), count))
            pairs.append((_gradient(model, point, batches), _gradient(model, states[t], batches)))
        middle = time.perf_counter()
        now, cosine = _match(spec, pairs, s - 1, max_sweeps)
        spent[0] += middle - start
        spent[1] += time.perf_counter() - middle
    moved = spec.apply(_difference(states[-1], states[0]), now)
    return Plain({k: target[k] + moved[k] for k in target}, cosine, *spent)


def _batches(source: BatchSource, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an epoch, and of those after it."""
    for number in itertools.count(epoch):
        for x, y, _ in source.batches(number):
            yield x, y


def _difference(a: State, b: State) -> State:
    return {k: a[k] - b[k] for k in a}


def _gradient(model: nn.Module, state: State, batches: Sequence[tuple[Tensor, Tensor]]) -> State:
    network = copy.deepcopy(model)
    network.load_state_dict(state)
    network.train()
    for x, y in batches:
        (F.cross_entropy(network(x), y) / len(batches)).backward()
    return {k: p.grad for k, p in network.named_parameters() if p.grad is not None}


@torch.no_grad()
def _match(
    spec: PermutationSpec, pairs: list[tuple[State, State]], seed: int, max_sweeps: int
) -> tuple[dict[str, Tensor], float]:
    """Coordinate descent from the identity over the sum of all pairs; groups must not be nested."""
    now = {g.name: torch.arange(g.size) for g in spec}
    names = list(now)
    for sweep in range(max_sweeps):
        progress = False
        for i in streams.permutation(seed, "symmetry.match", sweep, len(names)).tolist():
            group = spec.groups[names[i]]
            gains = torch.zeros(group.size, group.size)
            for (a, b), site in itertools.product(pairs, group.sites):
                if site.tensor not in a:
                    continue
                index = site.index[0].flatten()
                left = a[site.tensor].index_select(site.axis, index)
                right = b[site.tensor]
                for other, place in spec.by_tensor[site.tensor]:
                    if (other.name, place.axis) == (group.name, site.axis):
                        continue
                    order = torch.arange(right.shape[place.axis])
                    positions = place.index[0]
                    order[positions] = positions[now[other.name]]
                    right = right.index_select(place.axis, order)
                right = right.index_select(site.axis, index)
                left = left.movedim(site.axis, 0).reshape(group.size, -1)
                gains += left @ right.movedim(site.axis, 0).reshape(group.size, -1).T
            rows, columns = linear_sum_assignment(gains.numpy(), maximize=True)
            before = gains[rows, now[group.name]].sum(dtype=torch.float64).item()
            after = gains[rows, columns].sum(dtype=torch.float64).item()
            if after - before > 1e-7 * max(abs(before), abs(after)):
                now[group.name] = torch.from_numpy(columns)
                progress = True
        if not progress:
            break
    return now, _cosine(spec, pairs, now)


def _cosine(
    spec: PermutationSpec, pairs: list[tuple[State, State]], now: dict[str, Tensor]
) -> float:
    sums = [0.0, 0.0, 0.0]
    for a, b in pairs:
        for name in spec.by_tensor:
            if name in a:
                x, y = a[name].double(), spec.apply_to(name, b[name], now).double()
                for i, value in enumerate((x * y, x * x, y * y)):
                    sums[i] += float(value.sum())
    return sums[0] / (sums[1] * sums[2]) ** 0.5
