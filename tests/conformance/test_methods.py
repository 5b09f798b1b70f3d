import copy

import pytest
import torch
from methods import METHODS, STEPS, UNTRAINED, restore, sgd, state, train
from networks import conv_net, images
from two_processes import found, worker

from regraft.config import TicketConfig
from regraft.protocols import Stepper
from regraft.tickets import ARMS, named_masks, prepare
from regraft.train import load_state, save_state

each = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
HALF = STEPS // 2


def trained(method, seed=1, steps=STEPS):
    arm = method.build(seed)
    optimizer = sgd(arm)
    train(arm, optimizer, 0, steps)
    return arm, optimizer


def reloaded(arm, optimizer, method, path):
    save_state(path, state(arm, optimizer))
    other = method.build(2)
    again = sgd(other)
    restore(other, again, load_state(path))
    return other, again


def outputs(arm):
    x = images(20, seed=99)[0].to(next(arm.model.parameters()).dtype)
    was = arm.model.training
    with torch.no_grad():
        out = arm.model.eval()(x)
    arm.model.train(was)
    return out


def masks(arm):
    return {name: mask.mask(entry.original).clone() for name, entry, mask in named_masks(arm.model)}


def same(left, right):
    """Whether two trees of dicts, lists, tensors and numbers are equal, bit for bit."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(v, right[k]) for k, v in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@each
def test_saved_and_loaded_into_another_seed_it_is_the_same_network(method, tmp_path):
    arm, optimizer = trained(method)
    fresh = method.build(2)
    assert not torch.equal(outputs(fresh), outputs(arm))
    other, _ = reloaded(arm, optimizer, method, tmp_path / "state")
    assert torch.equal(outputs(other), outputs(arm))
    assert same(masks(other), masks(arm))


@each
def test_a_copy_goes_its_own_way_with_the_same_bits(method):
    arm, optimizer = trained(method, steps=HALF)
    twin, its_optimizer = copy.deepcopy((arm, optimizer))
    before = copy.deepcopy(state(arm, optimizer))
    first = train(twin, its_optimizer, HALF, STEPS)
    assert same(state(arm, optimizer), before)
    assert not same(state(twin, its_optimizer), before)
    assert same(train(arm, optimizer, HALF, STEPS), first)
    assert same(state(arm, optimizer), state(twin, its_optimizer))
    assert torch.equal(outputs(arm), outputs(twin))


@each
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(method):
    one, two, other = (trained(method, seed=seed) for seed in (1, 1, 2))
    assert same(state(*one), state(*two))
    assert torch.equal(outputs(one[0]), outputs(two[0]))
    assert not torch.equal(outputs(one[0]), outputs(other[0]))


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_it_trains_in_another_precision_and_keeps_it(method, dtype):
    arm = method.build(1)
    first = masks(arm)
    arm.model.to(dtype)
    if dtype == torch.float64:
        assert same(masks(arm), first)
    before = outputs(arm)
    losses = train(arm, sgd(arm), 0, STEPS)
    assert torch.stack(losses).isfinite().all()
    kept = [*arm.model.parameters(), *(b for b in arm.model.buffers() if b.is_floating_point())]
    assert {t.dtype for t in [*kept, *losses, outputs(arm)]} == {dtype}
    assert not torch.equal(outputs(arm), before)


@each
def test_resuming_equals_never_having_stopped(method, tmp_path):
    straight = trained(method)
    half = trained(method, steps=HALF)
    again = reloaded(*half, method, tmp_path / "state")
    train(*again, HALF, STEPS)
    assert same(state(*again), state(*straight))
    assert torch.equal(outputs(again[0]), outputs(straight[0]))


@each
def test_steppers_follow_the_protocol(method):
    assert all(isinstance(s, Stepper) for s in method.build(1).steppers.values())


def test_two_processes_with_a_break_equal_one_process(tmp_path):
    # One test for all methods: starting the processes takes longer than training in them.
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    for name, method in METHODS.items():
        arm = method.build(1, batch_norm=False)
        arm.model.double()
        train(arm, sgd(arm), 0, STEPS)
        one = found(arm)
        two, twin = (load_state(tmp_path / f"{name}-{rank}") for rank in (0, 1))
        assert same(two, twin), name
        assert same(two["masks"], one["masks"]), name
        assert same(two["weights"], one["weights"]), name
        assert two["parameters"].keys() == one["parameters"].keys(), name
        for key, value in one["parameters"].items():
            torch.testing.assert_close(
                two["parameters"][key], value, rtol=0, atol=1e-9, msg=f"{name}: {key}"
            )

    method = METHODS["frozen_iterand"]  # once more as a part of a larger module
    arm = method.build(1, batch_norm=False)
    arm.model.double()
    train(arm, sgd(arm), 0, STEPS)
    nested = load_state(tmp_path / "nested-0")
    assert same(nested, load_state(tmp_path / "nested-1"))
    assert same(nested["weights"], found(arm)["weights"])


def test_no_arm_is_forgotten():
    covered = {method.arm for method in METHODS.values()}
    assert covered.isdisjoint(UNTRAINED)
    assert covered | UNTRAINED == set(ARMS)


@pytest.mark.parametrize("name", sorted(UNTRAINED))
def test_what_is_listed_as_untrained_trains_nothing(name):
    assert not prepare(conv_net(), TicketConfig(method=name), seed=1, steps=1).trains
