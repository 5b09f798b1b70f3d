"""Second derivatives that are written out are those of torch, to inputs and along directions of weights."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from regraft.generators.mgr.hypergradient import SecondOrder
from regraft.generators.mgr.twice import Twice

LAYERS = {
    "convolution": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "stride": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=(1, 0), bias=False),
    "groups": lambda: nn.Conv2d(4, 6, (3, 1), groups=2, dilation=2),
    "same": lambda: nn.Conv2d(4, 6, 3, padding="same"),
    "norm": lambda: nn.BatchNorm2d(4),
    "norm_alone": lambda: nn.BatchNorm2d(4, affine=False),
    "norm_running": lambda: nn.BatchNorm2d(4).eval(),
    "norm_of_vectors": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(100, eps=0.1)),
    "both": lambda: nn.Sequential(
        nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Tanh(), nn.Conv2d(5, 3, 2)
    ),
}


def second(layer, x, inside):
    """Return the second derivative along directions of all weights, and the first one."""
    own = {n: p.detach().requires_grad_() for n, p in layer.named_parameters()}
    leaf = x.detach().requires_grad_()
    draw = torch.Generator().manual_seed(7)
    with Twice() if inside else torch.enable_grad():
        out = torch.func.functional_call(layer, own, (leaf.sin(),))
    value = (out.sin() * torch.rand(out.shape, generator=draw, dtype=x.dtype)).sum()
    # With a gradient to the input among them, as a second layer below has it.
    slopes = torch.autograd.grad(value, [leaf, *own.values()], create_graph=True)
    total = sum((s * torch.randn(s.shape, generator=draw, dtype=x.dtype)).sum() for s in slopes)
    return torch.autograd.grad(total, leaf)[0], [s.detach() for s in slopes]


@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives_are_torchs(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().double()
    for parameter in layer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    state = {n: b.clone() for n, b in layer.named_buffers()}
    slow, first = second(layer, x, inside=False)
    layer.load_state_dict(state, strict=False)
    fast, again = second(layer, x, inside=True)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)
    for one, two in zip(first, again, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("parts", ["weight", "bias", "weight and bias"])
@pytest.mark.parametrize("layer", ["convolution", "norm"])
def test_along_some_weights_only(layer, parts):
    torch.manual_seed(0)
    layer = LAYERS[layer]().double()
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    weights = {n: p for n, p in layer.named_parameters() if n in parts}
    direction = {n: torch.randn_like(p) for n, p in weights.items()}

    def inner(w, images):
        return torch.func.functional_call(layer, w, (images,)).sin().square().sum()

    leaf = x.clone().requires_grad_()
    own = {n: w.detach().requires_grad_() for n, w in weights.items()}
    slopes = torch.autograd.grad(inner(own, leaf), list(own.values()), create_graph=True)
    total = sum((s * direction[n]).sum() for n, s in zip(own, slopes, strict=True))
    (slow,) = torch.autograd.grad(total, leaf)
    (fast,) = SecondOrder(inner, weights, (x,)).along(direction)
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)


class Kernels(TorchDispatchMode):
    """Heights of the kernels of all convolutions inside."""

    def __init__(self):
        super().__init__()
        self.heights = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.heights.add(args[1].shape[2])
        return func(*args, **(kwargs or {}))


def test_no_convolution_has_a_kernel_as_large_as_the_image():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 2, 3), nn.Flatten())
    weights = dict(net.named_parameters())

    def inner(w, images):
        return torch.func.functional_call(net, w, (images,)).square().sum()

    twice = SecondOrder(inner, weights, (torch.rand(3, 1, 12, 12),))
    with Kernels() as kernels:
        twice.along({n: torch.ones_like(w) for n, w in weights.items()})
    assert kernels.heights == {3}
