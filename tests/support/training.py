"""Small data and networks that the tests of the training loop share."""

import json
import math

import torch
from torch import nn

from regraft.config import OptimConfig, RuntimeConfig
from regraft.train import Batches, RunFolder, fit


class Points:
    """Labelled points in batches; follows `regraft.protocols.BatchSource`."""

    def __init__(self, n=23, batch_size=5, seed=0, shuffle=True):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 6, generator=generator)
        self.y = (self.x[:, 0] > 0).long() + (self.x[:, 1] > 0).long()
        self.batch_size, self.shuffle = batch_size, shuffle

    def __len__(self):
        return math.ceil(len(self.x) / self.batch_size)

    def batches(self, epoch, *, start=0, rank=0, world=1):
        order = torch.arange(len(self.x))
        if self.shuffle:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(self.batch_size)[start:]:
            share = rows[rank::world]
            yield self.x[share], self.y[share], len(rows)


class Stop(Exception):  # noqa: N818
    """What a test interrupts a run with."""


def stop_at(step):
    def progress(now, _steps, _row):
        if now == step:
            raise Stop

    return progress


def network(*extra, seed=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), *extra, nn.Linear(8, 3))


def plain_network(seed=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def runtime(**changes):
    options = {"accelerator": "cpu", "threads": 1, "checkpoint_seconds": 0.0, "log_every": 3}
    return RuntimeConfig(**{**options, **changes})


def train(path, model, *, source=None, optim=None, run=None, finish=True, **more):
    """Train in the folder `path` as the recipes do, and return the result."""
    optim = optim or OptimConfig(lr=0.1, epochs=3, schedule="cosine")
    config = {"lr": optim.lr}
    with RunFolder(path, config=config, setting="points/net", arm="dense", seed=1) as folder:
        result = fit(
            model,
            Batches(source or Points(), Points(11, 4, 1, shuffle=False), Points(13, 4, 2)),
            optim=optim,
            runtime=run or runtime(),
            folder=folder,
            **more,
        )
        if finish:
            folder.finish(result)
        return result


def rows(path):
    """Return the metrics that a run has logged."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def equal(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
