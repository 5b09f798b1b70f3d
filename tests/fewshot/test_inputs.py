"""What can be wrong with a network, a support set or an inner loop, and how it is said."""

import pytest
import torch
from torch import nn

from regraft.errors import DivergenceError, InputError
from regraft.fewshot import (
    MAML,
    Episodes,
    EpisodeSampler,
    FrozenEncoder,
    MetaTicket,
    ProtoNet,
    Reptile,
    head_name,
)
from regraft.models import MLP, ConvSmall
from regraft.tickets import IteRand, fill, gather, load_ticket, save_ticket
from regraft.tickets.controls import shuffled_masks


def tasks(n=2, size=4, ways=3):
    images = torch.randn(24, 1, size, size, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4).repeat_interleave(6)
    return EpisodeSampler(images, labels, ways=ways, shots=2, queries=2, seed=1).batch(0, n)


def network(ways=3):
    torch.manual_seed(0)
    return MLP(16, (10, 8), ways, norm="batch")


def test_dropout_is_explained():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.1), nn.Linear(8, 3))
    with pytest.raises(
        InputError, match=r"layer '2' is dropout with p=0.1: tasks run side by side"
    ):
        MAML(net)
    net[2].p = 0.0
    MAML(net)


def test_running_statistics_are_explained():
    norm = nn.InstanceNorm1d(8, track_running_stats=True)
    with pytest.raises(InputError, match="keeps running statistics"):
        MAML(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), norm, nn.Linear(8, 3)))


def test_running_statistics_of_batchnorm_are_left_alone():
    net = network()
    before = net.features[2].running_mean.clone()
    MAML(net)(tasks()).backward()
    assert torch.equal(net.features[2].running_mean, before)


@pytest.mark.parametrize("path", ["exact", "vmap", "loop"])
def test_an_exploding_inner_loop_names_its_step(path):
    net = MLP(16, (10, 8), 3, norm="none").double()
    learner = MAML(net, lr=1e200, steps=3, path=path)
    with pytest.raises(
        DivergenceError, match=r"support loss of task 0 is nan after inner step [12]"
    ):
        learner(tasks().to(torch.float64))
    with pytest.raises(DivergenceError, match="inner step"):
        learner.adapt(*(t[0] for t in _support(tasks().to(torch.float64))))


def _support(episodes):
    return episodes.support_x, episodes.support_y


def test_reptile_names_the_step_too():
    with pytest.raises(DivergenceError, match="inner step"):
        Reptile(MLP(16, (10,), 3), lr=1e30, steps=4)(tasks())


def test_a_support_set_of_other_classes_is_refused():
    learner = MAML(network(ways=5))
    one = tasks(1)
    with pytest.raises(
        InputError, match="has 3 classes and the learner was trained for episodes of 5"
    ):
        learner.adapt(one.support_x[0], one.support_y[0])
    with pytest.raises(InputError, match="no image of class 1"):
        ProtoNet(network()).adapt(one.support_x[0], one.support_y[0] * 2)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"steps": 0}, "steps=0"),
        ({"adapts": "none"}, "adapts='none'"),
        ({"batchnorm": "running"}, "batchnorm='running'"),
    ],
)
def test_wrong_arguments_are_named(how, match):
    with pytest.raises(InputError, match=match):
        MAML(network(), **how)


def test_the_exact_path_is_for_stacks():
    net = ConvSmall(3, image_size=8)
    with pytest.raises(InputError, match="stacks of Linear"):
        MAML(net, path="exact")
    assert head_name(net) == "head"


def test_frozen_features_classify_new_classes():
    encoder = network(ways=10)
    for classifier in ("prototypes", "logistic"):
        learner = FrozenEncoder(encoder, classifier=classifier)
        episodes = tasks()
        adapted = learner.adapt(episodes.support_x[0], episodes.support_y[0])
        want = learner.logits(episodes)[0]
        torch.testing.assert_close(adapted(episodes.query_x[0]), want)
        assert not adapted.training
        assert adapted.num_classes == 3


def test_logistic_regression_is_where_its_gradient_vanishes():
    from regraft.fewshot import logistic_regression

    z = torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 7 + 3
    y = torch.arange(3).repeat(4)
    w, b = logistic_regression(z, y, 3, 0.01)
    mean = z.mean(0)
    length = (z - mean).norm(dim=1).mean()
    p = torch.softmax(z @ w.t() + b, 1) - nn.functional.one_hot(y, 3)
    gradient = p.t() @ ((z - mean) / length) / 12 + 0.01 * w * length
    assert float(gradient.abs().max()) < 1e-5
    assert float(p.mean(0).abs().max()) < 1e-5


def test_a_meta_ticket_is_saved_and_adapts_as_before(tmp_path):
    learner = MetaTicket(network(), seed=4, sparsity=0.3, lr=0.2, batchnorm="support")
    optimizer = torch.optim.SGD(learner.scores(), lr=5.0)
    iterand = IteRand(learner.network, every=2, rate=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        learner(tasks()).backward()
        optimizer.step()
        iterand.step()
    save_ticket(tmp_path / "model.ticket", learner.network)
    ticket = load_ticket(tmp_path / "model.ticket")
    again = MAML(fill(network(), ticket), masks=ticket.masks(), lr=0.2, batchnorm="support")
    torch.testing.assert_close(again.logits(tasks()), learner.logits(tasks()))
    assert abs(sum(learner.sparsity().values()) - 0.6) > 1e-3  # it is no longer the first one


def test_a_meta_ticket_goes_on_from_its_state():
    learner = MetaTicket(network(), seed=4, sparsity=0.3)
    with torch.no_grad():
        for s in learner.scores():
            s.add_(torch.randn(s.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    other = MetaTicket(network(), seed=9)
    other.load_state_dict(learner.state_dict())
    torch.testing.assert_close(other.logits(tasks()), learner.logits(tasks()))
    assert other.sparsity() == learner.sparsity()


def test_shuffled_masks_keep_the_sparsity_of_a_meta_ticket():
    learner = MetaTicket(network(), seed=4, sparsity=0.3)
    mixed = shuffled_masks(learner.network, seed=1)
    for name, share in learner.sparsity().items():
        assert abs(1 - float(mixed[name].float().mean()) - share) < 1e-6
    assert set(gather(learner.network).masks()) == set(mixed)


def test_regression_has_no_classes():
    x, y = torch.randn(2, 5, 1), torch.randn(2, 5, 1)
    net = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1))
    losses = {
        p: MAML(net, lr=0.01, steps=2, path=p)(Episodes(x, y, x, y)) for p in ("exact", "loop")
    }
    torch.testing.assert_close(losses["exact"], losses["loop"])
