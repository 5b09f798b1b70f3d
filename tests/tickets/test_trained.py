import copy

import numpy as np
import pytest
import torch
from networks import conv_net, images
from torch import nn

from regraft.errors import InputError
from regraft.tickets import (
    bake,
    by_magnitude,
    coded_bytes,
    coded_weights,
    decoded_weights,
    masks,
    quantise,
)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return conv_net()


@pytest.mark.parametrize("ternary", [True, False])
@pytest.mark.parametrize("sparsity", [0.0, 0.7])
def test_outputs_are_those_of_the_largest_weights(ternary, sparsity):
    plain = network()
    model = by_magnitude(copy.deepcopy(plain), sparsity, ternary=ternary)
    for name, mask in masks(model).items():
        weight = plain.get_parameter(name).detach()
        n = weight.numel()
        kept = np.argsort(-weight.abs().reshape(-1).numpy())[: n - round(sparsity * (n - 1))]
        expected = torch.zeros(n)
        values = weight.reshape(-1)[kept]
        expected[kept] = values.sign() * values.abs().mean() if ternary else values
        assert torch.allclose(bake(model).get_parameter(name).reshape(-1), expected, atol=1e-7)
        assert int(mask.sum()) == len(kept)
    x, _ = images(4)
    assert torch.equal(model.eval()(x), bake(model).eval()(x))


def test_the_gradient_of_latent_weights_is_that_of_the_weights_they_stand_for():
    model = by_magnitude(nn.Sequential(nn.Linear(6, 3, bias=False)), 0.5, ternary=True)
    plain = bake(model)
    x, y = torch.randn(5, 6), torch.randn(5, 3)
    for one in (model, plain):
        (one(x) - y).square().sum().backward()
    latent = model[0].parametrizations.weight.original
    assert torch.allclose(latent.grad, plain[0].weight.grad)
    assert (latent.grad != 0).all()  # of what is zero now as well


def test_a_ternary_layer_takes_two_bits_without_a_rounding_error():
    plain = bake(by_magnitude(network(), 0.6, ternary=True))
    rounded = quantise(plain, 2)
    for name, codes in rounded.codes.items():
        assert set(codes.unique().tolist()) == {-1, 0, 1}
        weight = rounded.state_dict()[name]
        assert torch.allclose(weight, plain.get_parameter(name), rtol=1e-3)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_is_coded_comes_back_and_takes_its_entropy(bits):
    rounded = quantise(network(3), bits)
    data, counts = coded_weights(rounded)
    back = decoded_weights(data, counts)
    bound = 0.0
    for name, codes in rounded.codes.items():
        assert np.array_equal(back[name], codes.reshape(-1).numpy())
        share = counts[name][counts[name] > 0] / codes.numel()
        bound -= codes.numel() * float((share * np.log2(share)).sum()) / 8
    assert bound <= len(data) <= bound + 8 + 0.001 * bound + 4 * len(counts)


def test_coded_bytes_count_everything_that_no_seed_gives_back():
    plain = bake(by_magnitude(network(), 0.6, ternary=True))
    rounded = quantise(plain, 2)
    data, _ = coded_weights(rounded)
    state = sum(4 * t.numel() for t in rounded.state.values() if t.is_floating_point())
    layers = len(rounded.codes)
    assert coded_bytes(rounded) == len(data) + layers * (3 * 4 + 2) + state
    four = quantise(network(), 4)
    assert coded_bytes(four) < four.payload_bytes + layers * 15 * 4


def test_a_layer_of_equal_weights_needs_no_code():
    flat = nn.Sequential(nn.Linear(4, 3, bias=False))
    nn.init.constant_(flat[0].weight, 0.5)
    rounded = quantise(flat, 2)
    data, counts = coded_weights(rounded)
    assert data == b""
    assert (decoded_weights(data, counts)["0.weight"] == 1).all()
    assert coded_bytes(rounded) == 3 * 4 + 2


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="no maskable weight"):
        by_magnitude(nn.Sequential(nn.ReLU()), 0.5, ternary=True)
    with pytest.raises(InputError, match="sparsity"):
        by_magnitude(network(), 1.5, ternary=False)
