"""A method takes the batch that the loss is of, and images without a class as they are meant."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from features import METHODS, STEPS, batch, loader, network
from regraft.errors import InputError
from regraft.features import METHODS as REGISTERED
from regraft.features import AdaRand, build

PENALTIES = ("l2sp", "delta", "delta_attention", "dr_tune")  # and what was queued
CASES = [c for c in METHODS.values() if not REGISTERED[c.name].replaces_loss]


def quietly(net, x):
    net.eval()
    with torch.no_grad():
        net(x)
    net.train()


def another_view(net, x):
    net(x.flip(3))


@pytest.mark.parametrize("between", [quietly, another_view])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_pass_between_forward_and_loss_is_noticed(case, between):
    net, method = case.build()
    x, y = batch()
    base = F.cross_entropy(net.train()(x), y)
    between(net, x)
    with pytest.raises(InputError, match="was called again between the forward pass of the loss"):
        method(base, y)
    base = F.cross_entropy(net(x), y)
    with method.tap.paused():
        between(net, x)
    method(base, y).backward()


def test_a_loss_of_two_passes_is_of_both():
    net = network(1)
    method = AdaRand().prepare(net, loader(), steps=STEPS)
    x, y = batch()
    base = F.cross_entropy(net(x.flip(3)), y) + F.cross_entropy(net(x), y)
    method(base, y).backward()
    assert net[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("ignored", [-1, -100])
@pytest.mark.parametrize("name", ["adarand", "randreg"])
def test_images_without_a_class_are_left_out(name, ignored):
    x, y = batch()
    some = torch.where(torch.arange(len(y)) < 4, ignored, y)
    ends = []
    for keep in (slice(4, None), slice(None)):
        net = network(1, norm=False)
        method = build(name, spread="none", seed=1).prepare(net, loader(), steps=STEPS)
        base = F.cross_entropy(net(x[keep]), some[keep], ignore_index=ignored)
        loss = method(base, some[keep])
        loss.backward()
        method.step()
        ends.append((loss.detach(), net[0].weight.grad, method.state_dict().get("mean")))
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)
    nothing = method(torch.zeros(()), torch.full_like(y, ignored)) if net(x) is not None else None
    assert nothing == 0.0


def test_statistics_leave_them_out():
    few = [(x[3:], y[3:]) for x, y in loader()]
    some = [(x, torch.where(torch.arange(len(y)) < 3, -100, y)) for x, y in loader()]
    one, other = (
        AdaRand().prepare(network(1, norm=False), data, steps=STEPS) for data in (few, some)
    )
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.std, other.std)


@pytest.mark.parametrize("name", ["supcon", "dr_tune", "co_tuning", "core_tuning"])
def test_methods_that_need_every_class_say_so(name):
    net, method = METHODS[name].build()
    x, y = batch()
    y[0] = -100
    with pytest.raises(InputError, match=r"targets have -100: .* needs the class of every image"):
        method(F.cross_entropy(net(x), y), y)


@pytest.mark.parametrize("name", ["delta", "dr_tune", "co_tuning", "lp_ft", "linear_probe"])
def test_batchnorm_of_what_is_frozen_or_copied_is_an_option(name):
    """Far from the source's images, batch statistics make features that the network has in training."""
    options = {"source_head": nn.Linear(8, 6)} if name == "co_tuning" else {}
    far = [(9.0 * x + 40.0, y) for x, y in loader()]
    torch.manual_seed(0)
    ends = {}
    for norm in ("eval", "train"):
        net = network(1)
        method = build(name, norm=norm, **options).prepare(net, far)
        ends[norm] = (net, method)
        with pytest.raises(InputError, match="norm='batch'"):
            build(name, norm="batch", **options)
    if name in ("lp_ft", "linear_probe"):
        assert not torch.equal(ends["eval"][0][-1].weight, ends["train"][0][-1].weight)
    elif name == "co_tuning":
        assert not torch.equal(ends["eval"][1].relation, ends["train"][1].relation)
    else:
        net, method = ends["train"]
        before = {n: b.clone() for n, b in method.teacher.network.named_buffers()}
        x, _ = far[0]
        with torch.no_grad():
            copied = method.train().teacher.network(x)
            assert torch.allclose(copied, net.train()(x), atol=1e-5)
        assert all(torch.equal(b, before[n]) for n, b in method.teacher.network.named_buffers())
        assert not torch.allclose(copied, ends["eval"][1].teacher.network(x), atol=1e-2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", METHODS.values(), ids=lambda c: c.name)
def test_of_an_empty_batch_what_looks_at_images_is_0(case, reduction):
    net, method = case.build()
    x, y = batch()
    net.eval()
    with torch.no_grad():
        net[0].weight.add_(0.1)
    whole = method(F.cross_entropy(net(x[:0]), y[:0], reduction=reduction), y[:0])
    assert (whole.item() > 0) is (case.name in PENALTIES), whole
    whole.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in net.parameters())
