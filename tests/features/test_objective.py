import pytest
import torch
from torch import nn
from training import Points, Stop, plain_network, runtime, stop_at
from training import train as fit_points

from features import METHODS as CASES
from features import STEPS, batch, loader, network, sgd
from regraft.errors import InputError
from regraft.features import METHODS, AdaRand, Objective, build
from regraft.protocols import Stepper


def test_it_is_the_methods_objective_in_training_and_the_base_loss_otherwise():
    net = network(1)
    method = AdaRand(spread="none").prepare(net, loader(), steps=STEPS)
    loss = Objective(method, nn.CrossEntropyLoss(label_smoothing=0.1))
    x, y = batch()
    base = nn.functional.cross_entropy(net(x), y, label_smoothing=0.1)
    expected = method(base, y)
    torch.testing.assert_close(loss(net(x), y), expected)
    torch.testing.assert_close(loss({"logits": net(x)}, y), expected)
    torch.testing.assert_close(loss.eval()(net(x), y), base)
    with pytest.raises(InputError, match="expected a tensor of logits"):
        loss({"hidden": x}, y)


def test_our_own_loop_takes_it_and_resumes(tmp_path):
    def run(folder, seed, **more):
        net = plain_network()
        method = AdaRand(seed=seed).prepare(net, Points(), steps=15)
        result = fit_points(
            folder, net, loss=Objective(method), steppers={"method": method}, run=runtime(), **more
        )
        return net, method, result

    straight, one, _ = run(tmp_path / "straight", 3)
    with pytest.raises(Stop):
        run(tmp_path / "again", 3, progress=stop_at(7))
    again, two, _ = run(tmp_path / "again", 4)
    for a, b in zip(again.parameters(), straight.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one.mean, two.mean)
    assert one._steps == two._steps == 15


def test_methods_are_made_by_name():
    assert list(METHODS) == sorted(METHODS)
    assert isinstance(build("adarand", weight=0.5), AdaRand)
    assert build("adarand", weight=0.5).weight == 0.5
    assert isinstance(build("plain"), Stepper)
    with pytest.raises(InputError, match="unknown fine-tuning method 'adarnd': did you mean 'adar"):
        build("adarnd")
    with pytest.raises(InputError, match=r"method 'bss': .*unexpected keyword argument 'alpha'"):
        build("bss", alpha=1)


def test_an_optimiser_that_a_method_follows_steps_it():
    net = network(1)
    method = AdaRand().prepare(net, loader(), steps=STEPS)
    optimizer = sgd(net, method)
    handle = method.follow(optimizer)
    optimizer.step()
    assert method._steps == 1
    handle.remove()
    optimizer.step()
    assert method._steps == 1


def hooks(net):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())


class BrokenError(Exception):
    pass


def broken(n):
    """Batches, and after some of them the disk fails."""
    yield from loader()[:n]
    raise BrokenError


@pytest.mark.parametrize("n", [0, 1, 4])
@pytest.mark.parametrize("case", CASES.values(), ids=lambda c: c.name)
def test_a_prepare_that_fails_leaves_no_hook_and_can_be_made_again(case, n):
    net, method = network(1), case.make(1)
    before = hooks(net)
    try:
        method.prepare(net, broken(n), steps=STEPS)
    except BrokenError:
        assert method.tap is None
        assert hooks(net) == before
    fresh = network(1)
    for model, one in ((net, method), (fresh, case.make(1))):
        one.prepare(model, loader(), steps=STEPS).remove()
    assert hooks(net) == hooks(fresh)


def test_a_layer_that_is_not_there_leaves_no_hook():
    net = network(1)
    with pytest.raises(InputError, match="'nine'"):
        build("delta", layers=["0", "nine"]).prepare(net, loader(), steps=STEPS)
    assert hooks(net) == 0
