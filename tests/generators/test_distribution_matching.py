import pytest
import torch
from torch import nn

from regraft.errors import InputError
from regraft.generators.distribution_matching import class_means, distance, embed
from regraft.models import MLP


def test_class_means_are_those_of_one_class_after_the_other():
    torch.manual_seed(0)
    model = MLP(12, (5, 4), 3).double()
    batches = [torch.randn(n, 3, 2, 2, dtype=torch.float64) for n in (3, 1, 5)]
    slow = torch.stack([model.features(b).mean(0) for b in batches])
    torch.testing.assert_close(class_means(model, batches), slow)
    other = torch.randn(3, 4, dtype=torch.float64)
    expected = sum(((slow[k] - other[k]) ** 2).sum() for k in range(3))
    torch.testing.assert_close(distance(slow, other), expected)


def test_any_network_is_read_before_its_last_linear_layer():
    torch.manual_seed(0)
    model = MLP(12, (5, 4), 3)
    plain = nn.Sequential(*model.features, model.head)
    images = torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(embed(plain, images), embed(model, images))
    assert not plain[-1]._forward_pre_hooks


def test_a_network_without_a_classifier_is_refused():
    with pytest.raises(InputError, match="no linear classifier"):
        embed(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten()), torch.zeros(1, 1, 3, 3))
