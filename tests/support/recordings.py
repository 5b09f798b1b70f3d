"""Runs that are recorded: a small network, steps that depend on their number alone."""

import torch
from torch import nn

from regraft.symmetry.transfer.recorder import TrajectoryRecorder


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def train(model, steps, *, start=0, after=lambda step: None):
    """Steps that depend on their number alone, as a resumed run's do."""
    for step in range(start, steps):
        g = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 4, generator=g), torch.randint(0, 3, (8,), generator=g)
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
        after(step + 1)


def copies(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def recorded(folder, *, steps=7, every=2, storage="full"):
    model = network()
    kept = {0: copies(model)}
    with TrajectoryRecorder(folder, model, every=every, storage=storage) as recorder:

        def after(step):
            recorder.step(model)
            kept[step] = copies(model)

        train(model, steps, after=after)
    return kept


def same(a, b, **how):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        torch.testing.assert_close(a[name], b[name], **how)
