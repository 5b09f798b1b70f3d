"""The benchmark of transfers compares what it says: the plain one on the very batches of the fast one."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from symmetry_specs import mlp
from torch import nn
from transfer_cases import Source, ends

from regraft.symmetry.transfer.gradients import Gradients
from regraft.symmetry.transfer.trajectory import Trajectory
from regraft.symmetry.transfer.transfer import transfer


@pytest.fixture
def bench(monkeypatch):
    """Import a script of the benchmarks, which stand beside the package."""
    folder = Path(__file__).parents[3] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.mark.parametrize("by", ["gmt", "fgmt"])
@pytest.mark.parametrize("count", [2, 5])  # 5: more than an epoch has
def test_the_plain_transfer_sees_the_same_batches(bench, by, count):
    model, spec = mlp([6, 12, 3])  # one group: its matching is exact, whatever it starts from
    model[1] = nn.Tanh()
    a, b, other = ends(model, dtype=torch.float32)
    line = Trajectory.linear(a, b, steps=4)
    source = Source((6,), dtype=torch.float32)
    batches, drawn = source.batches, []
    source.batches = lambda epoch, **options: drawn.append(epoch) or batches(epoch, **options)
    *_, ours = transfer(line, other, spec, Gradients(model, source, count=count), by=by)
    mine = set(drawn)
    drawn.clear()
    plain = bench("plain_transfer").plain_transfer(
        line, other, spec, model, source, count=count, all_pairs=by == "gmt"
    )
    assert set(drawn) == mine
    assert plain.cosine == pytest.approx(ours.cosine, rel=1e-5)
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(tensor, ours.weights[name])


def test_a_fit_that_is_worse_by_more_than_two_percent_is_called_so(bench):
    fits = bench("transfer").fits
    for plain in (0.03, 0.5, 1.0):
        assert fits(plain, plain)
        assert fits(1.1 * plain, plain)
        assert fits(0.981 * plain, plain)
        assert not fits(0.979 * plain, plain)
