import pytest
import torch
import torch.nn.functional as F
from networks import conv_net, images

from regraft.errors import InputError
from regraft.tickets import (
    Freezing,
    IteRand,
    apply_masks,
    bake,
    edge_popup,
    masks,
    named_masks,
    pruned_count,
    random_masks,
    shuffled,
    shuffled_masks,
    unmask,
)


def test_random_masks_have_the_sparsity_asked_for_in_each_layer():
    for mask in random_masks(conv_net(), 0.7, seed=1).values():
        assert int((~mask).sum()) == pruned_count(mask.numel(), 0.7)


def test_shuffled_masks_keep_each_layers_sparsity_and_lose_its_structure():
    model = edge_popup(conv_net(), sparsity=0.6, seed=1)
    found, mixed = masks(model), shuffled_masks(model, seed=2)
    for name, mask in found.items():
        assert mask.sum() == mixed[name].sum()
    big = "7.weight"
    overlap = (found[big] & mixed[big]).sum() / found[big].sum()
    assert overlap == pytest.approx(0.4, abs=0.05)


def test_a_shuffled_network_has_the_same_random_weights_elsewhere():
    model = edge_popup(conv_net(), sparsity=0.6, weight_init="kaiming_uniform", seed=1)
    other, mixed = shuffled(model, seed=2), shuffled_masks(model, seed=2)
    for name, mask in mixed.items():
        assert torch.equal(other.get_parameter(name) != 0, mask)
    both = masks(model)["7.weight"] & mixed["7.weight"]
    same = bake(model).get_parameter("7.weight")[both] == other.get_parameter("7.weight")[both]
    assert same.all()


def frozen_net(scope):
    model = edge_popup(
        conv_net(),
        sparsity=0.6,
        weight_init="kaiming_uniform",
        freezing=Freezing(0.3, 0.2),
        dynamic_scale=True,
        scope=scope,
        seed=1,
    )
    IteRand(model, every=1, rate=0.5).step()
    return model


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_of_a_frozen_network_only_free_positions_are_shuffled(scope):
    model = frozen_net(scope)
    found, mixed = masks(model), shuffled_masks(model, seed=2)
    for name, _, mask in named_masks(model):
        parts = torch.from_numpy(mask.pattern.parts()).reshape(mask.weight.shape)
        assert mixed[name].sum() == found[name].sum()
        assert not mixed[name][parts == -1].any()
        assert mixed[name][parts == 1].all()
        assert not torch.equal(mixed[name], found[name])


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_shuffled_frozen_network_keeps_as_many_weights_at_the_same_scale(scope):
    model = frozen_net(scope)
    before, other, mixed = bake(model), shuffled(model, seed=2), shuffled_masks(model, seed=2)
    for name, _, mask in named_masks(model):
        ours, theirs = other.get_parameter(name), before.get_parameter(name)
        assert (ours != 0).sum() == (theirs != 0).sum()
        assert torch.equal(ours != 0, mixed[name])
        both = masks(model)[name] & mixed[name]
        assert torch.equal(ours[both], theirs[both])
        c = (1 / mixed[name].double().mean()).sqrt().float()
        assert torch.equal(ours, mask.whole() * mixed[name] * c)


def test_unmasking_a_frozen_network_brings_back_what_is_pruned_for_good():
    model = frozen_net("layer")
    whole = unmask(model)
    for name, _, mask in named_masks(model):
        weight = whole.get_parameter(name)
        parts = torch.from_numpy(mask.pattern.parts()).reshape(weight.shape)
        assert torch.equal(weight[parts == -1], mask.source.rebuild()[parts == -1])
        assert torch.equal(weight[parts != -1], mask.weight[parts != -1])


def test_shuffled_masks_have_golden_positions():
    model = edge_popup(torch.nn.Linear(6, 2), sparsity=0.5, seed=1)
    golden = [[0, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0]]
    assert shuffled_masks(model, seed=2)["weight"].int().tolist() == golden


def test_under_fixed_masks_only_kept_weights_learn():
    chosen = random_masks(conv_net(), 0.5, seed=1)
    model = apply_masks(conv_net(), chosen)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {n: model.get_submodule(n[0]).weight.detach().clone() for n in chosen}
    x, y = images()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    for name, mask in chosen.items():
        after = model.get_submodule(name[0]).weight.detach()
        assert (after[~mask] == 0).all()
        assert (after[mask] != before[name][mask]).any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nothing.weight": torch.ones(2, dtype=torch.bool)}, "no parameter 'nothing.weight'"),
        ({"7.weight": torch.ones(2, dtype=torch.bool)}, r"'7.weight' has shape \(2,\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        apply_masks(conv_net(), wrong)


def test_a_model_with_nothing_to_prune_is_refused():
    with pytest.raises(InputError, match="no maskable weight"):
        random_masks(torch.nn.ReLU(), 0.5, seed=1)
