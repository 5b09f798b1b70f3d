"""The head that generated images have to themselves: its steps, whatever the loop does to the loss."""

import copy

import pytest
import torch
import torch.nn.functional as F
from generating import made, net32
from two_head_processes import HEADS, stepped, worker


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("scale", [2.0**-20, 65536.0])
def test_an_outer_factor_changes_no_step(kind, scale):
    plain, scaled = stepped(kind, steps=3), stepped(kind, steps=3, scale=scale)
    assert not torch.equal(plain, stepped(kind, steps=1))
    torch.testing.assert_close(plain, scaled, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", HEADS)
def test_a_step_that_is_not_finite_is_left_out(kind):
    assert torch.equal(stepped(kind, steps=1), stepped(kind, steps=2, spoil=1))


def test_a_step_is_that_of_the_layer_in_the_graph():
    net = net32()
    mgr = made(net, select="uniform", loss="head", weight=0.7, unroll_lr=0.3)
    before = copy.deepcopy(mgr.head)
    twin, images = torch.nn.Linear(20, 3), mgr._made(8, copy.deepcopy(mgr).generator("batch"))
    twin.load_state_dict(before.state_dict())
    (0.7 * F.cross_entropy(twin(net.body((images.clean - 0.2) / 0.5)), images.labels)).backward()
    own = [p.grad.clone() for p in twin.parameters()]
    mgr.loss(net, 0).backward()
    mgr.head.settle(0.3)
    for new, old, slope in zip(mgr.head.parameters(), before.parameters(), own, strict=True):
        torch.testing.assert_close(new.detach(), old.detach() - 0.3 * slope)


def test_a_loss_without_a_backward_pass_teaches_nothing():
    net = net32()
    mgr = made(net, select="uniform", loss="head")
    before = copy.deepcopy(mgr.head.state_dict())
    for step in range(2):
        mgr.loss(net, step)
    assert all(torch.equal(v, before[k]) for k, v in mgr.head.state_dict().items())


def test_all_processes_have_the_same_head(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    for kind in HEADS:
        one, two = (torch.load(tmp_path / f"{kind}-{r}", weights_only=True) for r in (0, 1))
        assert torch.equal(one, two), kind
        assert not torch.equal(one, stepped(kind, steps=3)), kind
