import pytest
from networks import conv_net

from regraft.config import TicketConfig
from regraft.errors import InputError
from regraft.tickets import ARMS, masks, named_masks, prepare, sparsity


@pytest.mark.parametrize("method", ["random_mask", "shuffled_mask"])
def test_arms_that_do_not_train_have_their_sparsity_from_the_start(method):
    config = TicketConfig(method=method, sparsity=0.8, anneal=0.5)
    arm = prepare(conv_net(), config, seed=1, steps=100)
    assert not arm.trains
    assert not arm.steppers
    assert sparsity(arm.model) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("method", ["edge_popup", "iterand", "random_mask_trained"])
def test_what_is_to_stay_trainable_is_not_masked(method):
    config = TicketConfig(method=method, trainable=("7.*",))
    arm = prepare(conv_net(), config, seed=1, steps=100)
    assert masks(arm.model).keys() == {"0.weight", "3.weight"}
    assert arm.model[7].weight.requires_grad


def test_a_search_anneals_over_its_share_of_the_steps():
    arm = prepare(conv_net(), TicketConfig(sparsity=0.6, anneal=0.5), seed=1, steps=20)
    assert set(arm.steppers) == {"iterand", "sparsity"}
    seen = []
    for _ in range(12):
        seen.append(sparsity(arm.model))
        arm.steppers["sparsity"].step()
    assert seen[0] == 0
    assert seen[5] == pytest.approx(0.3, abs=0.02)
    assert seen[10] == pytest.approx(0.6, abs=0.02)


def test_dense_is_left_alone():
    arm = prepare(conv_net(), TicketConfig(method="dense"), seed=1, steps=1)
    assert not list(named_masks(arm.model))
    assert all(p.requires_grad for p in arm.model.parameters())


def test_an_unknown_method_is_refused_with_the_list():
    with pytest.raises(InputError, match=r"expected one of .*iterand") as caught:
        prepare(conv_net(), TicketConfig(method="magic"), seed=1, steps=1)
    assert all(name in str(caught.value) for name in ARMS)
