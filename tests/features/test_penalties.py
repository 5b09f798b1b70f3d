"""Penalties of features and weights, each against its formula written out."""

import copy

import pytest
import torch
from torch import nn

from features import CLASSES, WIDTH, batch, loader, network
from regraft.errors import InputError
from regraft.features import BSS, L2SP, BitFit, FeatureNorm, Method, Plain, RandReg


def forwarded(method, net=None, data=None):
    """Prepare on a network, run it on a batch, return network, features and labels."""
    net = net or network(1)
    method.prepare(net, data if data is not None else loader(), steps=3)
    x, y = batch(seed=5)
    net(x)
    return net, method.tap.features, y


def total_variance():
    net = network(1)
    f = torch.cat([net[:-1](x) for x, _ in loader()])
    return f.detach().var(0).mean()


def test_plain_fine_tuning_adds_nothing():
    method = Plain()
    _, f, y = forwarded(method)
    assert method.loss(f, y) == 0
    base = torch.tensor(1.25)
    assert method(base, y) == base


def test_feature_norm():
    _, f, y = forwarded(method := FeatureNorm(0.3))
    slow = 0.3 / total_variance() * sum((row**2).mean() for row in f) / len(f)
    torch.testing.assert_close(method.loss(f, y), slow)
    _, f, y = forwarded(method := FeatureNorm(0.3, normalise=False))
    torch.testing.assert_close(method.loss(f, y), 0.3 * sum((row**2).mean() for row in f) / len(f))


@pytest.mark.parametrize("distance", ["l2", "smooth_l1"])
@pytest.mark.parametrize("kind", ["uniform", "normal", "source", "class"])
def test_randreg_draws_from_what_it_says_and_measures_the_distance(kind, distance):
    method = RandReg(kind, weight=0.7, distance=distance, seed=4)
    net, f, y = forwarded(method)
    method._draws = 0
    z = method.reference(f, y)
    method._draws = 0
    diff = (f - z).abs()
    each = diff**2 if distance == "l2" else torch.where(diff < 1, 0.5 * diff**2, diff - 0.5)
    torch.testing.assert_close(method.loss(f, y), 0.7 / total_variance() * each.mean())

    many = method.reference(torch.zeros(30_000, WIDTH), torch.ones(30_000, dtype=torch.long))
    net.train()
    g = torch.cat([net[:-1](x) for x, _ in loader()]).detach()
    labels = torch.cat([y for _, y in loader()])
    mean, std = {
        "uniform": (torch.full((WIDTH,), 0.5), torch.full((WIDTH,), 12**-0.5)),
        "normal": (torch.zeros(WIDTH), torch.ones(WIDTH)),
        "source": (g.mean(0), g.std(0)),
        "class": (g[labels == 1].mean(0), g[labels == 1].std(0)),
    }[kind]
    error = 5 * std / 30_000**0.5 + 1e-7
    assert ((many.mean(0) - mean).abs() < error).all()
    torch.testing.assert_close(many.std(0), std, rtol=0.03, atol=1e-7)
    if kind == "uniform":
        assert many.min() >= 0
        assert many.max() < 1


def test_a_class_prior_mixes_for_mixed_targets():
    method = RandReg("class", spread="none")
    _, f, y = forwarded(method)
    p = nn.functional.one_hot(y, CLASSES) * 0.6 + nn.functional.one_hot((y + 1) % 3, CLASSES) * 0.4
    expected = 0.6 * method.mean[y] + 0.4 * method.mean[(y + 1) % 3]
    torch.testing.assert_close(method.reference(f, p), expected)


def test_l2sp_is_the_distance_from_the_start_and_the_heads_norm():
    net = network(1)
    start = {n: p.detach().clone() for n, p in net.named_parameters()}
    method = L2SP(0.3, head_weight=0.2)
    _, f, y = forwarded(method, net)
    with torch.no_grad():
        for p in net.parameters():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    net[0].bias.requires_grad_(False)
    slow = 0.0
    for n, p in net.named_parameters():
        if n.startswith("8."):
            slow = slow + 0.2 / 2 * (p**2).sum()
        elif n != "0.bias":
            slow = slow + 0.3 / 2 * ((p - start[n]) ** 2).sum()
    found = method.loss(f, y)
    torch.testing.assert_close(found, slow)
    found.backward()
    torch.testing.assert_close(net[0].weight.grad, 0.3 * (net[0].weight - start["0.weight"]))
    assert net[0].bias.grad is None


def test_l2sp_needs_no_loader():
    net = network(1)
    method = L2SP().prepare(net)
    net(batch()[0])
    assert method.loss(method.tap.features, batch()[1]) > 0


@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_bss_shrinks_the_smallest_singular_values(shape, k):
    f = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    f.requires_grad_(True)
    squares = torch.linalg.eigvalsh(f @ f.T).flip(0)[: min(shape)]
    slow = 0.01 * squares[-k:].sum()
    found = BSS(0.01, smallest=k).loss(f, torch.zeros(shape[0]))
    torch.testing.assert_close(found, slow)
    (expected,) = torch.autograd.grad(slow, f)
    (gradient,) = torch.autograd.grad(found, f)
    torch.testing.assert_close(gradient, expected)


def test_bitfit_trains_biases_and_classifier_only():
    class WithAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
            self.norm = nn.LayerNorm(WIDTH)
            self.fc = nn.Linear(WIDTH, 3)

        def forward(self, x):
            return self.fc(self.norm(self.attention(x, x, x)[0]).mean(1))

    net = WithAttention()
    BitFit().prepare(net)
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    assert trained == {
        "attention.in_proj_bias", "attention.out_proj.bias", "norm.bias", "fc.weight", "fc.bias"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FeatureNorm(-1), "weight=-1"),
        (lambda: RandReg("gauss"), "kind='gauss': expected one of uniform"),
        (lambda: RandReg(distance="l1"), "distance='l1'"),
        (lambda: L2SP(float("inf")), "weight=inf"),
        (lambda: L2SP(head_weight=-2), "head_weight=-2"),
        (lambda: BSS(smallest=0), "smallest=0"),
    ],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_method_of_ones_own_is_a_few_lines():
    class Anchor(Method):
        def _prepare(self, samples, steps, mode):
            self.register_buffer("at", torch.ones(self.num_features))

        def loss(self, features, targets, context=None):
            return (features - self.at).abs().mean()

    net = network(1)
    method = Anchor().prepare(net)
    x, y = batch()
    base = nn.functional.cross_entropy(net(x), y)
    f = copy.copy(method.tap.features)
    torch.testing.assert_close(method(base, y), base + (f - 1).abs().mean())
