import copy

import pytest
import torch
from torch import nn

from features import CLASSES, WIDTH, batch, loader, network, source_head
from regraft.errors import InputError
from regraft.features import CoTuning


def test_the_source_head_learns_what_target_classes_look_like_to_it():
    net, head = network(1), source_head()
    method = CoTuning(2.0, source_head=head).prepare(net, loader())
    net.eval()
    p = torch.cat([head(net[:-1](x)).softmax(1) for x, _ in loader()]).detach()
    labels = torch.cat([y for _, y in loader()])
    relation = torch.stack([p[labels == k].mean(0) for k in range(CLASSES)])
    torch.testing.assert_close(method.relation, relation)

    x, y = batch()
    net(x)
    f = method.tap.features
    logs = head(f).log_softmax(1)
    slow = 2.0 * sum(-(relation[y[i]] * logs[i]).sum() for i in range(len(y))) / len(y)
    torch.testing.assert_close(method.loss(f, y), slow)
    mixed = 0.5 * nn.functional.one_hot(y, CLASSES) + 0.5 * nn.functional.one_hot(y * 0, CLASSES)
    slow = 2.0 * -((0.5 * relation[y] + 0.5 * relation[0]) * logs).sum(1).mean()
    torch.testing.assert_close(method.loss(f, mixed), slow)


def test_the_head_is_a_copy_that_trains_at_a_tenth_of_the_rate():
    head = source_head()
    method = CoTuning(source_head=head.requires_grad_(False))
    before = copy.deepcopy(head.state_dict())
    method.prepare(network(1), loader())
    (group,) = method.param_groups(0.5)
    assert group["lr"] == pytest.approx(0.05)
    assert [p.shape for p in group["params"]] == [(6, WIDTH), (6,)]
    with torch.no_grad():
        group["params"][0].zero_()
    assert torch.equal(head.weight, before["weight"])


def test_what_it_needs_is_said():
    with pytest.raises(InputError, match=r"keep copy.deepcopy.model.get_classifier"):
        CoTuning()
    with pytest.raises(InputError, match="source_head takes 5 features and the network gives 8"):
        CoTuning(source_head=nn.Linear(5, 2)).prepare(network(1), loader())
    with pytest.raises(InputError, match="loader is missing"):
        CoTuning(source_head=source_head()).prepare(network(1))
    x = batch()[0]
    with pytest.raises(InputError, match="labels go from 0 to 5"):
        CoTuning(source_head=source_head()).prepare(network(1), [(x, torch.arange(12) % 6)])
