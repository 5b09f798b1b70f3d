"""Convolutions of few channels as a product with patches."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from regraft.fewshot.batchnorm import episodic
from regraft.fewshot.expansion import ExpandedConv


@pytest.mark.parametrize("channels", [1, 4])  # expanded, and left a convolution
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": (2, 1)}, {"dilation": 2, "bias": False}]
)
def test_a_convolution_of_few_channels_is_an_exact_product(channels, options):
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 5, 3, **options).double()
    plain = episodic(nn.Sequential(layer))[0]
    assert isinstance(plain, ExpandedConv) == (channels == 1)
    x = torch.randn(4, channels, 9, 8, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(plain(x), layer(x))
    ours, theirs = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (plain, layer))
    torch.testing.assert_close(ours, theirs)


class ReadsItsConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = self.conv(x).relu()
        return self.head(y.view(len(x), self.conv.out_channels, -1).mean(2))


def test_a_network_may_read_its_convolution_and_hook_it():
    torch.manual_seed(0)
    network, seen = ReadsItsConv().double(), []
    network.conv.register_forward_hook(lambda *_: seen.append(1))
    ours, theirs = episodic(network).eval(), network
    x = torch.rand(6, 1, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    assert len(seen) == 2
    assert type(ours.conv) is ExpandedConv
    assert type(network.conv) is nn.Conv2d
    torch.testing.assert_close(ours.conv(x[0]), theirs.conv(x[0]))


def test_away_from_the_cpu_a_convolution_stays_one():
    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.add(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    plain = episodic(nn.Sequential(nn.Conv2d(1, 5, 3)))
    for device, product in (("cpu", True), ("meta", False)):
        names = set()
        with Calls():
            plain.to(device)(torch.rand(2, 1, 6, 6, device=device))
        assert (torch.ops.aten.im2col in names) == product
        assert (torch.ops.aten.convolution in names) != product
