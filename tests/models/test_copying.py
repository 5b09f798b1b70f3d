import torch
from torch import nn
from torch.nn.utils import parametrizations

from regraft.models.copying import copy_module


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 2)
        self.last = {}

    def forward(self, x):
        hidden = torch.relu(self.body(x))
        self.last["hidden"], self.again = [hidden], hidden
        return self.head(hidden)


def test_a_network_with_activations_of_a_graph_is_copied():
    model, x = Keeps(), torch.randn(4, 6)
    model(x).sum().backward()
    twin = copy_module(model)
    assert torch.equal(twin(x), model(x))
    assert twin.body.weight is not model.body.weight
    assert twin.body.weight.grad is not model.body.weight.grad


def test_copies_of_one_tensor_are_one_and_belong_to_no_graph():
    model = Keeps()
    model(torch.randn(4, 6))
    twin = copy_module(model)
    assert twin.last["hidden"][0] is twin.again
    assert twin.again.grad_fn is None
    assert model.again.grad_fn is not None
    assert torch.equal(twin.again, model.again)


def test_tied_parameters_stay_tied():
    model = Keeps()
    model.other = model.head
    twin = copy_module(model)
    assert twin.other.weight is twin.head.weight


def test_an_lstm_whose_weights_are_computed_is_copied():
    model = parametrizations.weight_norm(nn.LSTM(3, 4, batch_first=True), "weight_hh_l0")
    x = torch.randn(2, 5, 3)
    model(x)[0].sum().backward()
    assert torch.equal(copy_module(model)(x)[0], model(x)[0])
