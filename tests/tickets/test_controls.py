import pytest
import torch
import torch.nn.functional as F
from networks import conv_net, images

from regraft.errors import InputError
from regraft.tickets import (
    apply_masks,
    bake,
    edge_popup,
    masks,
    pruned_count,
    random_masks,
    shuffled,
    shuffled_masks,
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
