"""Weight matching as slow and as plainly as it can be written: the twin of the fast matcher.

Full state dicts are permuted anew for every block of every sweep, gains are inner products of the
elements of each pair of units, and scipy solves every assignment.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from regraft import streams
from regraft.symmetry.spec.group import Group
from regraft.symmetry.spec.permutation import compose, inverse
from regraft.symmetry.spec.spec import PermutationSpec

IGNORED = ("running_mean", "running_var", "num_batches_tracked")


def objective(spec, a, b, permutation) -> float:
    moved = spec.apply(b, permutation)
    return sum(
        float((a[t].double() * moved[t].double()).sum())
        for t in spec.by_tensor
        if not t.endswith(IGNORED)
    )


def twin(spec, a, b, blocks, *, seed=0, max_sweeps=100, tolerance=1e-7):
    """Return (permutation, objective after every sweep); `blocks` lists the free groups of each."""
    now = dict(spec.identity())
    values = [objective(spec, a, b, now)]
    for sweep in range(max_sweeps):
        moved = False
        for i in streams.permutation(seed, "symmetry.match", sweep, len(blocks)).tolist():
            best = _solve(spec, a, b, blocks[i], now)
            before, after = (objective(spec, a, b, p) for p in (now, best))
            if after - before > tolerance * max(abs(before), abs(after)):
                now, moved = best, True
        values.append(objective(spec, a, b, now))
        if not moved:
            break
    return now, values


def _solve(spec: PermutationSpec, a, b, free, now):
    names = set(free)
    alone = {g.name: now[g.name] if g.name in names else p for g, p in _identity(spec)}
    rest = compose(spec, now, inverse(spec, alone))
    held = {k: v.double().numpy() for k, v in spec.apply(b, rest).items()}
    solver = _Pairs(spec, {k: v.double().numpy() for k, v in a.items()}, held, names)
    found = {g.name: p for g, p in _identity(spec)}
    root = spec.groups[free[0]]
    gains = np.array(
        [[solver.value(root, i, j) for j in range(root.size)] for i in range(root.size)]
    )
    columns = linear_sum_assignment(gains, maximize=True)[1]
    found[root.name] = torch.from_numpy(columns)
    for i, j in enumerate(columns):
        solver.fill(found, root, i, int(j))
    return compose(spec, rest, found)


def _identity(spec):
    return [(g, p) for g, p in zip(spec, spec.identity().values(), strict=True)]


class _Pairs:
    def __init__(self, spec, a, b, free):
        self.spec, self.a, self.b, self.free = spec, a, b, free

    def children(self, group: Group):
        return [g for g in self.spec if g.parent == group.name and g.name in self.free]

    def cells(self, group: Group, unit: int):
        """Yield (tensor, flat positions) of a unit, in the layout's order."""
        copy, at = divmod(unit, group.size)
        for site in group.sites:
            if site.tensor.endswith(IGNORED):
                continue
            shape = self.a[site.tensor].shape
            flat = np.arange(int(np.prod(shape))).reshape(shape)
            flat = np.take(flat, site.index[copy, at].numpy(), axis=site.axis)
            if site.over is not None:
                flat = np.take(flat, site.slices[copy].numpy(), axis=site.over)
            yield site.tensor, flat.ravel()

    def descendants(self, group: Group, unit: int):
        for child in self.children(group):
            for at in range(child.size):
                yield child, unit * child.size + at
                yield from self.descendants(child, unit * child.size + at)

    def value(self, group: Group, u: int, v: int) -> float:
        inside: dict[str, set[int]] = {}
        for child, unit in self.descendants(group, u):
            for tensor, cell in self.cells(child, unit):
                inside.setdefault(tensor, set()).update(cell.tolist())
        total = 0.0
        for (tensor, x), (_, y) in zip(self.cells(group, u), self.cells(group, v), strict=True):
            own = np.array([i not in inside.get(tensor, ()) for i in x.tolist()])
            total += float(self.a[tensor].ravel()[x[own]] @ self.b[tensor].ravel()[y[own]])
        return total + sum(self.inner(child, u, v)[1] for child in self.children(group))

    def inner(self, child: Group, u: int, v: int):
        n = child.size
        gains = np.array(
            [[self.value(child, u * n + s, v * n + t) for t in range(n)] for s in range(n)]
        )
        rows, columns = linear_sum_assignment(gains, maximize=True)
        return columns, float(gains[rows, columns].sum())

    def fill(self, found, group: Group, u: int, v: int) -> None:
        for child in self.children(group):
            columns, _ = self.inner(child, u, v)
            found[child.name] = found[child.name].clone()
            found[child.name][u] = torch.from_numpy(columns)
            for s, t in enumerate(columns):
                self.fill(found, child, u * child.size + s, v * child.size + int(t))
