import pytest
import torch
from networks import conv_net
from searches import search
from torch import nn

from regraft.errors import InputError
from regraft.tickets import IteRand, bake, edge_popup, fill, gather, gather_state
from regraft.tickets.file.packed import pack, unpack


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
        self.b = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))


def same(ticket, model):
    """Whether a ticket, through its file, is the network of a masked model, bit by bit."""
    weights = bake(model).state_dict()
    found = unpack(pack(ticket)).state_dict()
    return found.keys() == weights.keys() and all(torch.equal(found[k], weights[k]) for k in found)


@pytest.mark.parametrize("seeds", [(1, 2), (1, 1)])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_parts_masked_one_by_one_stay_apart(seeds, scope):
    model = Pair()
    for part, seed, sparsity in zip((model.a, model.b), seeds, (0.3, 0.8), strict=True):
        edge_popup(part, seed=seed, sparsity=sparsity, scope=scope)
    assert same(gather_state(model.state_dict()), model)
    assert same(gather(model), model)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_equal_sources_with_other_scores_stay_apart(scope):
    model = Pair()
    for part in (model.a, model.b):
        edge_popup(part, seed=1, scope=scope)
    with torch.no_grad():
        model.b[0].parametrizations.weight.original.normal_()
    ticket = gather_state(model.state_dict())
    assert ticket.layers["b.0.weight"].source.name == "0.weight"
    assert same(ticket, model)


def test_equal_scores_with_other_draws_stay_apart():
    model = Pair()
    for part in (model.a, model.b):
        edge_popup(part, seed=1, weight_init="kaiming_uniform")
    IteRand(model.b, every=1, rate=1.0).step()
    with torch.no_grad():  # what was redrawn is kept now
        for part in (model.a, model.b):
            part[0].parametrizations.weight.original.normal_(
                generator=torch.Generator().manual_seed(0)
            )
    assert same(gather_state(model.state_dict()), model)
    assert gather_state(model.state_dict()).layers["b.0.weight"].draws is not None


def tied():
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    net[1].weight = net[0].weight
    return edge_popup(net, seed=1)


@pytest.mark.parametrize("part", ["original", "0.weight"])
def test_a_tied_weight_may_be_there_under_its_first_name_only(part):
    state = tied().state_dict()
    state.pop(f"1.parametrizations.weight.{part}", None)
    assert pack(gather_state(state)) == pack(gather(tied()))


def test_a_ticket_of_a_state_keeps_what_it_was_when_the_model_goes_on():
    model = search()
    before = gather(model).state["1.running_mean"]
    ticket = gather_state(model.state_dict())
    with torch.no_grad():
        model[1].running_mean.add_(1.0)
    assert torch.equal(ticket.state["1.running_mean"], before)


def test_tied_tensors_that_are_not_masked_survive_in_a_state():
    net = nn.Sequential(nn.Embedding(50, 40), nn.Linear(40, 40), nn.Linear(40, 50, bias=False))
    net[2].weight = net[0].weight
    edge_popup(net, params=["1.weight"])
    ticket = gather_state(net.state_dict())
    assert ticket.aliases == {"2.weight": "0.weight"}
    assert pack(ticket) == pack(gather(net))


@pytest.mark.parametrize("key", ["note", "0.parametrizations.weight.0._extra_state"])
def test_a_state_with_something_else_than_tensors_is_refused(key):
    state = {**edge_popup(Pair().a).state_dict(), key: "text"}
    with pytest.raises(InputError, match=f"{key!r} is a str: a ticket holds tensors only"):
        gather_state(state)


def test_a_compiled_network_has_the_names_of_the_plain_one():
    model = search(scope="global")
    wanted = pack(gather(model))
    compiled = torch.compile(model)
    assert next(iter(compiled.state_dict())).startswith("_orig_mod.")
    assert pack(gather(compiled)) == wanted
    assert pack(gather_state(compiled.state_dict())) == wanted
    nested = nn.Sequential(torch.compile(edge_popup(nn.Linear(4, 4))), nn.Linear(4, 2))
    assert gather(nested).shapes().keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert same(gather_state(nested.state_dict()), nn.Sequential(nested[0]._orig_mod, nested[1]))


def test_a_network_masked_after_it_was_compiled_has_plain_names():
    model = edge_popup(torch.compile(conv_net()), scope="global")
    wanted = conv_net().state_dict().keys()
    for ticket in (gather(model), gather_state(model.state_dict())):
        assert ticket.shapes().keys() == wanted
        assert same(ticket, model._orig_mod)


def test_a_wrapper_for_several_devices_leaves_no_trace():
    model = search()
    assert pack(gather(nn.DataParallel(model))) == pack(gather(model))
    state = {f"_orig_mod.module.{key}": value for key, value in model.state_dict().items()}
    assert pack(gather_state(state)) == pack(gather(model))


def test_a_module_under_two_names_has_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = self.a

    model = edge_popup(Twice(), seed=1)
    assert same(gather(model), model)
    fill(Twice(), gather(model))
