import copy
import math

import pytest
import torch
from torch import nn

from features import WIDTH, batch, loader, network, sgd, train
from regraft.errors import InputError
from regraft.features import Delta, fit_probe

F64 = torch.float64
LAYERS = ("0", "4")


def maps(net, x):
    first = net[0](x)
    second = net[4](net[1:4](first))
    return {"0": first, "4": second}


@pytest.mark.parametrize("attention", [False, True])
def test_the_distance_of_maps_is_its_formula(attention):
    net = network(1).to(F64)
    start = copy.deepcopy(net).eval()
    method = Delta(0.3, head_weight=0.2, attention=attention, attention_batches=2)
    method.prepare(net, loader(dtype=F64))
    assert method.layers == list(LAYERS)
    train(net, method, sgd(net, method), 0, 3)
    x, y = batch(seed=9, dtype=F64)
    net(x)
    now, then = maps(copy.deepcopy(net), x), maps(start, x)
    total = 0.0
    for i, name in enumerate(LAYERS):
        channels, h, w = now[name].shape[1:]
        a = getattr(method, f"attention_{i}") if attention else [1 / channels] * channels
        for b in range(len(x)):
            for c in range(channels):
                square = (now[name][b, c] - then[name][b, c]).square().sum()
                total = total + a[c] * channels / (h * w) * square / len(x)
    slow = 0.3 / 2 * total + 0.2 / 2 * sum((p**2).sum() for p in net[-1].parameters())
    before = method.tap.features
    torch.testing.assert_close(method(torch.zeros((), dtype=F64), y), slow)
    assert before.requires_grad


def test_attention_is_what_the_loss_of_a_probe_needs_a_channel_for():
    net = network(1).to(F64)
    data = loader(dtype=F64)
    method = Delta(attention=True, attention_batches=2, temperature=3.0).prepare(net, data)
    net.eval()
    f = torch.cat([net[:-1](x) for x, _ in data]).detach()
    w, b, _ = fit_probe(f, torch.cat([y for _, y in data]), 3)
    x, y = (torch.cat(column) for column in zip(*data[:2], strict=True))

    def loss(channel=None):
        first = net[0](x)
        second = net[4](net[1:4](first))
        if channel is not None:
            second = second.clone()
            second[:, channel] = 0
        return nn.functional.cross_entropy(net[5:-1](second) @ w.T + b, y).item()

    rise = [loss(c) - loss() for c in range(WIDTH)]
    mean = sum(rise) / WIDTH
    std = math.sqrt(sum((r - mean) ** 2 for r in rise) / WIDTH)
    expected = torch.tensor([(r - mean) / std / 3.0 for r in rise], dtype=F64).softmax(0)
    torch.testing.assert_close(method.attention_1, expected, rtol=1e-6, atol=1e-9)


def test_the_copy_stays_as_it_is_and_in_evaluation_mode():
    net = network(1)
    method = Delta().prepare(net, loader())
    before = copy.deepcopy(method.teacher.state_dict())
    train(net, method.train(), sgd(net, method), 0, 4)
    after = method.teacher.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert not any(m.training for m in method.teacher.modules())
    assert method.extra_parameters() == []


def test_layers_can_be_named_and_tokens_have_channels_last():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            x = x[:, 0]
            for block in self.blocks:
                x = x + block(x).tanh()
            return self.head(x.mean(1))

    torch.manual_seed(0)
    net = Tokens()
    method = Delta().prepare(net, loader())
    assert method.layers == ["blocks.0", "blocks.2", "blocks.3", "blocks.5"]
    method = Delta(1.0, head_weight=0, layers=["blocks.1"]).prepare(net, loader())
    x, y = batch()
    with torch.no_grad():
        start = net.blocks[1].bias.clone()
        net.blocks[1].bias += torch.linspace(0, 1, 8)
    net(x)
    slow = 0.5 * ((net.blocks[1].bias - start) ** 2).sum()
    torch.testing.assert_close(method(torch.zeros(()), y), slow)


def test_resnets_give_the_last_convolution_of_each_stage():
    models = pytest.importorskip("torchvision.models")
    x = torch.randn(2, 3, 32, 32)
    net = models.resnet50(num_classes=3)
    method = Delta().prepare(net, [(x, torch.tensor([0, 1]))])
    assert method.layers == [
        "layer1.2.conv3", "layer2.3.conv3", "layer3.5.conv3", "layer4.2.conv3"
    ]  # fmt: skip


def test_what_it_needs_is_said():
    with pytest.raises(InputError, match="loader is missing"):
        Delta().prepare(network(1))
    with pytest.raises(InputError, match="layers has 'body': Sequential has no such module"):
        Delta(layers=["body"]).prepare(network(1), loader())
    with pytest.raises(InputError, match="attention_batches=0"):
        Delta(attention_batches=0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(InputError, match="name layers with layers="):
        Delta().prepare(plain, loader())
    method = Delta(layers=["0"]).prepare(network(1), loader())
    with pytest.raises(InputError, match="needs the forward pass"):
        method.loss(torch.zeros(2, WIDTH), torch.zeros(2, dtype=torch.long))
