import pytest
import torch
from networks import conv_net, images
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from regraft.errors import InputError
from regraft.tickets import bake, edge_popup, masks, unmask


def test_a_baked_model_is_plain_and_gives_equal_outputs():
    model = edge_popup(conv_net(), sparsity=0.7, seed=1).eval()
    x, _ = images()
    baked = bake(model)
    assert torch.equal(baked(x), model(x))
    assert [type(m) for m in baked] == [type(m) for m in conv_net()]
    assert baked.state_dict().keys() == conv_net().state_dict().keys()
    assert all(p.requires_grad for p in baked.parameters())
    for name, mask in masks(model).items():
        assert torch.equal(baked.get_parameter(name) != 0, mask)


def test_the_masked_model_goes_on_as_it_was():
    model = edge_popup(conv_net(), seed=1).eval()
    x, _ = images()
    before = model(x)
    bake(model)
    assert torch.equal(model(x), before)
    assert parametrize.is_parametrized(model[0])


def test_other_parametrisations_stay():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    edge_popup(model, params=["1.weight"])
    x = torch.randn(3, 4)
    model.eval()
    baked = bake(model)
    assert parametrize.is_parametrized(baked[0], "weight")
    assert torch.equal(baked(x), model(x))


def test_two_parametrised_tensors_of_one_module_part_ways():
    layer = nn.Bilinear(3, 4, 2)
    edge_popup(layer, params=["weight"])
    parametrize.register_parametrization(layer, "bias", nn.Tanh())
    a, b = torch.randn(5, 3), torch.randn(5, 4)
    baked = bake(layer)
    assert parametrize.is_parametrized(baked, "bias")
    assert not parametrize.is_parametrized(baked, "weight")
    assert torch.equal(baked(a, b), layer(a, b))
    assert torch.equal(layer(a, b), layer(a, b))


def test_a_tied_weight_is_baked_once():
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    baked = bake(edge_popup(net))
    assert baked[0].weight is baked[1].weight


def test_unmasking_gives_the_whole_random_network():
    model = edge_popup(conv_net(), sparsity=0.9, seed=1)
    whole = unmask(model)
    for name, mask in masks(model).items():
        weight = whole.get_parameter(name)
        assert (weight != 0).all()
        assert torch.equal(weight * mask, bake(model).get_parameter(name))


def test_a_plain_model_is_refused():
    with pytest.raises(InputError, match="no masked weight"):
        bake(conv_net())


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.last = nn.Linear(6, 8), nn.Linear(8, 2), None

    def forward(self, x):
        self.last = torch.relu(self.body(x))
        return self.head(self.last)


def test_it_bakes_right_after_a_backward_pass_whatever_a_network_keeps():
    model, x = edge_popup(Keeps(), seed=1), torch.randn(4, 6)
    model(x).sum().backward()
    assert torch.equal(bake(model)(x), model(x))


def test_a_masked_lstm_is_baked_right_after_a_backward_pass():
    model = edge_popup(nn.LSTM(6, 8, batch_first=True), params=["weight_*"], seed=1)
    x = torch.randn(4, 5, 6)
    model(x)[0].sum().backward()
    baked = bake(model)
    assert torch.equal(baked(x)[0], model(x)[0])
    with torch.no_grad():
        baked.weight_ih_l0.mul_(2)
    assert not torch.equal(baked(x)[0], model(x)[0])  # its weights are what it computes with


def test_a_weight_norm_stays_beside_a_mask_and_in_the_same_layer():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    edge_popup(model, params=["1.weight"])
    layer = parametrizations.weight_norm(nn.LSTM(4, 3), "weight_hh_l0")
    edge_popup(layer, params=["weight_ih_l0"])
    x = torch.randn(3, 4)
    assert torch.equal(bake(model)(x), model(x))
    assert torch.equal(bake(layer)(x)[0], layer(x)[0])
    assert "parametrizations.weight_hh_l0.original0" in bake(layer).state_dict()
