import pytest
import torch
from torch import nn

from regraft.errors import InputError
from regraft.models.modes import evaluating, kept_modes
from regraft.symmetry.match.straight_through import batch_statistics
from regraft.symmetry.merge import reset_batch_norm_
from regraft.symmetry.trace.export import unfused
from regraft.train import evaluate


def network():
    """Return a network in training mode with a frozen BatchNorm."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout(), nn.ReLU()))
    net[1].eval()
    return net


def modes(net):
    return [module.training for module in net.modules()]


@pytest.mark.parametrize(
    ("keeper", "inside"),
    [
        (kept_modes, [True, True, False, True, True, True]),
        (evaluating, [False] * 6),
        (unfused, [False] * 6),
        (batch_statistics, [False, False, True, False, False, False]),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_parts_are_left_in_their_own_modes_whatever_happens(keeper, inside, fails):
    net = network()
    before = modes(net)
    try:
        with keeper(net):
            assert modes(net) == inside
            net.train(not fails)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert modes(net) == before


class Broken:
    def __len__(self):
        return 2

    def batches(self, epoch, **_):
        yield torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), torch.arange(2)
        raise InputError("a file cannot be read")


def test_a_measurement_that_breaks_off_leaves_the_modes():
    net = network()
    before = modes(net)
    with pytest.raises(InputError, match="cannot be read"):
        evaluate(net, Broken())
    assert modes(net) == before


def test_statistics_that_cannot_be_taken_leave_the_modes():
    net = network()
    before = modes(net)
    with pytest.raises(InputError, match="use larger ones"):
        reset_batch_norm_(net, [torch.zeros(1, 3)])
    assert modes(net) == before
