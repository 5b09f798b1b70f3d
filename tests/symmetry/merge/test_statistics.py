"""BatchNorm statistics that are taken anew: their weights, their networks, and what a failure leaves."""

import copy

import pytest
import torch
from repairing import batches, network
from torch import nn

from regraft.errors import InputError
from regraft.models import ResNet
from regraft.symmetry.merge.repair import reset_batch_norm_


def test_resnets_are_reset_and_dropout_is_off_meanwhile():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.9), ResNet(18, 3, channels=2, width=0.05))
    data = batches((2, 8, 8), (6, 6))
    for _ in range(2):
        assert reset_batch_norm_(model, data) == 21
        found = model[1].features[1].running_mean
        expected = torch.stack([model[1].features[0](x).mean((0, 2, 3)) for x in data]).mean(0)
        torch.testing.assert_close(found, expected)


class Twice(nn.Module):
    """Runs its norm twice in one pass, and never runs another."""

    def __init__(self):
        super().__init__()
        self.norm, self.idle = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.norm(self.norm(x) + 1)


def test_batches_of_equal_size_give_the_cumulative_average_of_torch():
    for model in (network("norm"), Twice()):
        data = batches((2, 6, 6), (8, 8, 8))
        twin = copy.deepcopy(model)
        for norm in twin.modules():
            norm.momentum = None
        reset_batch_norm_(model, data)
        with torch.no_grad():
            for x in data:
                twin.train()(x)
        for name, value in twin.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name


def test_a_short_last_batch_weighs_as_much_as_its_images():
    data = torch.cat([torch.zeros(50, 1, 4, 4), torch.full((2, 1, 4, 4), 26.0)])
    norm = nn.BatchNorm2d(1)
    reset_batch_norm_(norm, [data[:50], data[50:]])
    torch.testing.assert_close(norm.running_mean, data.mean((0, 2, 3)))


def test_instance_norms_with_statistics_are_given_them():
    norm = nn.InstanceNorm2d(2, track_running_stats=True)
    data = batches((2, 4, 4), (9, 9, 4))
    assert reset_batch_norm_(norm, data) == 1
    each = torch.cat(data).flatten(2)
    torch.testing.assert_close(norm.running_mean, each.mean((0, 2)))
    torch.testing.assert_close(norm.running_var, each.var(2).mean(0))


def test_a_norm_that_no_batch_reaches_keeps_its_statistics():
    model = Twice()
    model.idle.running_mean.fill_(3)
    assert reset_batch_norm_(model, batches((2, 4, 4))) == 1
    assert model.idle.running_mean.tolist() == [3, 3]


def test_a_norm_whose_forward_is_called_directly_is_reset_all_the_same():
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x):
            return self.norm.forward(x)

    model, data = Direct(), batches((2, 4, 4), (6, 6))
    assert reset_batch_norm_(model, [*data, data[0][:0]]) == 1
    torch.testing.assert_close(model.norm.running_mean, torch.cat(data).mean((0, 2, 3)))


def failing(kind):
    yield torch.randn(4, 2, 6, 6)
    if kind == "disk":
        raise OSError("disk")
    if kind == "alone":
        yield torch.randn(1, 2, 1, 1)


@pytest.mark.parametrize("kind", ["disk", "alone", "none"])
def test_a_reset_that_fails_changes_nothing(kind):
    model = nn.Sequential(nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(2))
    for x in batches((2, 6, 6)):
        model(x)
    before, momentum = copy.deepcopy(model.state_dict()), model[0].momentum
    with pytest.raises((OSError, InputError)):
        reset_batch_norm_(model, () if kind == "none" else failing(kind))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model[0].momentum == momentum
    assert not model[0]._forward_pre_hooks
    assert model[0].training
