"""MAML with the meta-gradients of pruned sub-networks."""

import pytest
import torch
from fewshot_twin import close, conv, episodes, mlp, twin_loss
from torch import nn

from regraft import streams
from regraft.errors import DivergenceError, InputError
from regraft.fewshot import MAML, MGAug


def masks_of(network, event, pruned):
    """The masks of one sub-network: a stream for each weight but the classifier's."""
    names = ["features.1.weight", "features.4.weight"]
    values = dict(network.named_parameters())
    kept = {
        n: streams.bernoulli(3, f"{n}#mgaug", event, values[n].numel(), 1 - pruned) for n in names
    }
    return {n: k.reshape(values[n].shape).double() for n, k in kept.items()}


@pytest.mark.parametrize("path", ["exact", "vmap", "loop"])
def test_the_loss_is_the_mean_over_the_whole_network_and_its_pruned_copies(path):
    network, tasks = mlp(), episodes()
    learner = MGAug(network, seed=3, pruned=0.25, subnetworks=2, lr=0.3, steps=2, path=path)
    phi = dict(network.named_parameters())
    for call in range(2):  # each call draws masks of its own
        losses = [
            twin_loss(network, phi, masks, learner.step_sizes(), tasks, 2)
            for masks in ({}, *(masks_of(network, 2 * call + u, 0.25) for u in range(2)))
        ]
        want = torch.stack(losses).mean()
        loss = learner(tasks)
        assert abs(loss.item() - want.item()) < 1e-12
        trained = list(network.parameters())
        close(torch.autograd.grad(loss, trained), torch.autograd.grad(want, trained))
    assert losses[1].item() != losses[2].item()


def test_what_adapts_is_the_whole_network():
    tasks = episodes()
    learner, whole = MGAug(conv(), seed=1, lr=0.2, pruned=0.5), MAML(conv(), lr=0.2)
    learner(tasks)
    torch.testing.assert_close(learner.logits(tasks), whole.logits(tasks))


def test_a_loss_that_teaches_nothing_is_that_of_the_whole_network_and_draws_nothing():
    tasks = episodes()
    learner, whole = MGAug(mlp(), seed=1, pruned=0.5), MAML(mlp())
    with torch.no_grad():
        assert learner(tasks).item() == whole(tasks).item()
    assert learner.eval()(tasks).item() == whole(tasks).item()
    assert learner.train()(tasks).item() == MGAug(mlp(), seed=1, pruned=0.5)(tasks).item()


def test_an_inner_loop_that_explodes_in_a_sub_network_is_named_with_its_step():
    learner = MGAug(mlp(), seed=1)
    learner(episodes())
    learner._losses[1] = (learner._losses[1][0] * float("nan"), learner._losses[1][1])
    with pytest.raises(DivergenceError, match="support loss of task 0 is nan before the first"):
        learner.check()


def test_masks_go_on_from_a_state_dict():
    tasks = episodes()
    one, two = (MGAug(mlp(), seed=1, pruned=0.3) for _ in range(2))
    first = one(tasks).item()
    two.load_state_dict(one.state_dict())
    assert one(tasks).item() == two(tasks).item() != first


def test_what_cannot_be_pruned_is_refused():
    with pytest.raises(
        InputError, match=r"pruned=1.0: expected a share of each weight in \[0, 1\)"
    ):
        MGAug(mlp(), seed=1, pruned=1.0)
    with pytest.raises(InputError, match="subnetworks=0: expected at least 1"):
        MGAug(mlp(), seed=1, subnetworks=0)
    with pytest.raises(InputError, match="no weight to prune"):
        MGAug(nn.Sequential(nn.Flatten(), nn.Linear(25, 3)), seed=1)
