"""Weight matching as one writes it from the paper: every group anew, every sweep, with scipy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from regraft import streams
from regraft.symmetry.spec.spec import PermutationSpec

IGNORED = ("running_mean", "running_var", "num_batches_tracked")


@torch.no_grad()
def plain_match(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    seed: int = 0,
    max_sweeps: int = 100,
    tolerance: float = 1e-7,
) -> tuple[dict[str, Tensor], int]:
    """Return (permutation, sweeps) of coordinate descent in the order that `match` takes.

    Groups must not be nested. A group changes only if that raises its own gain by `tolerance`, and
    the descent ends after a sweep in which none did.
    """
    now = {g.name: torch.arange(g.size) for g in spec}
    names = list(now)
    if any(g.parent for g in spec):
        raise ValueError("plain_match knows no nested groups")
    for sweep in range(max_sweeps):
        progress = False
        for i in streams.permutation(seed, "symmetry.match", sweep, len(names)).tolist():
            group = spec.groups[names[i]]
            gains = torch.zeros(group.size, group.size)
            for site in group.sites:
                if site.tensor.endswith(IGNORED):
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
                right = right.movedim(site.axis, 0).reshape(group.size, -1)
                gains += left @ right.T
            rows, columns = linear_sum_assignment(gains.numpy(), maximize=True)
            before = gains[rows, now[group.name]].sum(dtype=torch.float64).item()
            after = gains[rows, columns].sum(dtype=torch.float64).item()
            if after - before > tolerance * max(abs(before), abs(after)):
                now[group.name] = torch.from_numpy(columns)
                progress = True
        if not progress:
            return now, sweep + 1
    return now, max_sweeps
