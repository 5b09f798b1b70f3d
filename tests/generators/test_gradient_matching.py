import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regraft.generators.gradient_matching import (
    distance,
    matched,
    real_gradients,
    synthetic_gradients,
)
from regraft.generators.networks import freeze_norms_
from regraft.models import MLP, ConvSmall

KINDS = ("mlp", "batch", "conv")


def network(kind, seed=0):
    torch.manual_seed(seed)
    if kind == "conv":
        made = ConvSmall(3, channels=2, image_size=6, width=0.25)
    else:
        made = MLP(72, (7, 5), 3, norm="batch" if kind == "batch" else "none")
    made = made.double()
    freeze_norms_(made, torch.randn(20, 2, 6, 6, dtype=torch.float64))
    return made


def images(n, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, n, 2, 6, 6, dtype=torch.float64, generator=generator)


def slow_distance(left, right):
    total = 0.0
    for a, b in zip(left, right, strict=True):
        for k in range(len(a)):
            for x, y in zip(a[k], b[k], strict=True):
                x, y = x.flatten(), y.flatten()
                norms = x.norm() * y.norm()
                total = total + 1 - ((x @ y) / norms if norms > 0 else 0)
    return total


def slow_gradients(model, batches, create_graph=False):
    weights = [p for p in model.parameters() if p.ndim > 1]
    found = []
    for k, own in enumerate(batches):
        loss = F.cross_entropy(model(own), torch.full((len(own),), k))
        found.append(torch.autograd.grad(loss, weights, create_graph=create_graph))
    return [torch.stack(layer) for layer in zip(*found, strict=True)]


@pytest.mark.parametrize("vectorise", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_gradient_is_that_of_the_plain_loops(kind, vectorise):
    model = network(kind)
    wanted = real_gradients(model, list(images(9, 2)))
    torch.testing.assert_close(wanted, slow_gradients(model, images(9, 2)))
    slow = images(4).requires_grad_()
    loss = slow_distance(slow_gradients(model, slow, create_graph=True), wanted)
    (expected,) = torch.autograd.grad(loss, slow)
    fast = images(4).requires_grad_()
    found = distance(synthetic_gradients(model, fast, vectorise=vectorise), wanted)
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(torch.autograd.grad(found, fast)[0], expected)


def test_the_pixels_gradient_is_the_slope_of_the_distance():
    # Smooth, as a step across a kink of ReLU would measure something else.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    wanted = real_gradients(model, list(images(6, 2)))

    def found(x):
        return distance(synthetic_gradients(model, x), wanted)

    assert torch.autograd.gradcheck(found, images(2).requires_grad_(), fast_mode=True)


def test_real_classes_may_have_different_sizes():
    model = network("mlp")
    batches = [images(9, 2)[k, : k + 3] for k in range(3)]
    torch.testing.assert_close(
        real_gradients(model, batches), slow_gradients(model, batches), rtol=1e-9, atol=1e-12
    )


def test_only_weights_are_matched():
    names = list(matched(network("batch")))
    assert names == ["features.1.weight", "features.4.weight", "head.weight"]
    frozen = network("batch")
    frozen.head.requires_grad_(False)
    assert list(matched(frozen)) == names[:2]


@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_the_distance_looks_at_directions_of_rows(seed, factor):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(3, 4, 2, 5, dtype=torch.float64, generator=generator) for _ in "ab")
    torch.testing.assert_close(distance([left], [right]), slow_distance([left], [right]))
    torch.testing.assert_close(distance([left * factor], [right]), distance([left], [right]))
    assert distance([left], [left * factor]).item() == pytest.approx(0, abs=1e-12)
    assert distance([left], [-left]).item() == pytest.approx(2 * 12)


def test_a_row_of_zeros_is_at_distance_one_and_moves_nothing():
    right = torch.randn(1, 2, 3)
    left = torch.stack([torch.zeros(3), right[0, 1]])[None].requires_grad_()
    found = distance([left], [right])
    assert found.item() == pytest.approx(1, abs=1e-6)
    found.backward()
    assert left.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_classes_does_not_matter(kind):
    model = network(kind)
    order = torch.tensor([2, 0, 1])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.weight.copy_(model.head.weight[order])
        other.head.bias.copy_(model.head.bias[order])
    gradients = []
    for net, rows in ((model, torch.arange(3)), (other, order)):
        own = images(4)[rows].requires_grad_()
        wanted = real_gradients(net, list(images(9, 2)[rows]))
        loss = distance(synthetic_gradients(net, own), wanted)
        gradients.append(torch.autograd.grad(loss, own)[0])
    torch.testing.assert_close(gradients[0][order], gradients[1])
