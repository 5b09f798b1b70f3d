"""Small settings of a transfer: batches by a rule, a source's two ends, another initialisation."""

import copy

import torch
import torch.nn.functional as F
from symmetry_specs import mlp, random_state

from regraft.symmetry.transfer.trajectory import Trajectory


class Source:
    """Batches of normal numbers with labels by a rule; another order in every epoch."""

    def __init__(self, shape, *, n=96, batch=32, classes=3, dtype=torch.float64, same=False):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, *shape, generator=g, dtype=torch.float64).to(dtype)
        self.y = self.x.flatten(1)[:, :classes].argmax(1)
        self.batch, self.same = batch, same

    def __len__(self):
        return len(self.x) // self.batch

    def batches(self, epoch, *, start=0, rank=0, world=1):
        seed = 0 if self.same else epoch
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))
        for part in order.split(self.batch)[start:]:
            yield self.x[part], self.y[part], len(part)


def scaled(state):
    """Weights of a sane size: activations stay of order one through all layers."""
    return {
        k: v / v[0].numel() ** 0.5 if v.is_floating_point() and v.ndim > 1 else v
        for k, v in state.items()
    }


def ends(model, *, seed=0, dtype=torch.float64):
    """A source's two ends and another initialisation."""
    start, other, away = (scaled(random_state(model, seed + i, dtype=dtype)) for i in range(3))
    final = {
        k: v + 0.3 * away[k] if v.is_floating_point() and "running" not in k else v
        for k, v in start.items()
    }
    return start, final, other


def setting(seed=0, widths=(6, 10, 9, 3)):
    model, spec = mlp(list(widths))
    model.double()
    a, b, other = ends(model, seed=seed)
    return spec, model, Trajectory.linear(a, b, steps=4), other, Source((widths[0],))


def gradient(model, state, batches):
    network = copy.deepcopy(model)
    network.load_state_dict(state)
    network.train()
    total = {}
    for x, y in batches:
        network.zero_grad()
        F.cross_entropy(network(x), y).backward()
        for k, p in network.named_parameters():
            total[k] = total.get(k, 0) + p.grad / len(batches)
    return total
