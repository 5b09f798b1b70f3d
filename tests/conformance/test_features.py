import copy
import functools

import pytest
import torch
from torch import nn
from two_feature_processes import found, worker

from features import METHODS, STEPS, batch, missing, pretrained, restore, sgd, state, train
from regraft.errors import InputError
from regraft.protocols import Stepper
from regraft.train import load_state, save_state

each = pytest.mark.parametrize("case", METHODS.values(), ids=METHODS)
HALF = STEPS // 2


@functools.cache
def _source():
    return pretrained()


def source():
    return copy.deepcopy(_source())


def trained(case, seed=1, steps=STEPS):
    model, method = case.build(seed)
    optimizer = sgd(model, method)
    train(model, method, optimizer, 0, steps)
    return model, method, optimizer


def same(left, right):
    """Whether two trees of dicts, lists, tensors and numbers are equal, bit for bit."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(v, right[k]) for k, v in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def test_no_method_is_forgotten():
    assert not missing()


@each
def test_resuming_in_a_network_of_another_seed_equals_never_having_stopped(case, tmp_path):
    straight = trained(case)
    save_state(tmp_path / "state", state(*trained(case, steps=HALF)))
    model, method = case.build(2)
    optimizer = sgd(model, method)
    restore(model, method, optimizer, load_state(tmp_path / "state"))
    train(model, method, optimizer, HALF, STEPS)
    assert same(state(model, method, optimizer), state(*straight))


@each
def test_a_copy_goes_its_own_way_with_the_same_bits(case):
    first = trained(case, steps=HALF)
    twin = copy.deepcopy(first)
    before = copy.deepcopy(state(*first))
    losses = train(*twin, HALF, STEPS)
    assert same(state(*first), before)
    assert not same(state(*twin), before)
    assert same(train(*first, HALF, STEPS), losses)
    assert same(state(*first), state(*twin))


@each
def test_the_same_seed_gives_the_same_bits_and_torchs_own_generator_is_not_used(case):
    torch.manual_seed(1)
    one = trained(case)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = trained(case)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(state(*one), state(*two))


@each
def test_preparing_leaves_modes_buffers_and_weights_of_the_backbone(case):
    model, _ = METHODS["plain"].build(1)
    for module, mode in zip(model.modules(), [True, False] * 9, strict=False):
        module.training = mode
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    case.make(1).prepare(model, [batch(seed=3), batch(1, seed=4)], steps=STEPS)
    after = model.state_dict()
    for name, value in before.items():
        if not name.startswith("8."):  # the classifier, which LP-FT starts from its probe
            assert torch.equal(after[name], value), name
    norm = 0 if case.name in ("lp_ft", "linear_probe") else 1
    assert [m.training for m in model.modules()][: 1 + norm] == modes[: 1 + norm]
    if norm:
        assert [m.training for m in model.modules()] == modes


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
def test_it_trains_in_another_precision(case, dtype):
    model, method = case.build(1, dtype=dtype)
    losses = train(model, method, sgd(model, method), 0, STEPS)
    assert torch.stack(losses).isfinite().all()
    assert {p.dtype for p in model.parameters()} == {dtype}
    wide = torch.promote_types(dtype, torch.float32)
    kept = [*method.buffers(), *method.extra_parameters()]
    own = {t.dtype for t in kept if t.is_floating_point() and t.dtype != dtype}
    assert own <= {wide}


@each
def test_under_autocast_the_term_is_computed_in_float32(case):
    model, method = case.build(1)
    optimizer = sgd(model, method)
    x, y = batch(seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        base = nn.functional.cross_entropy(model(x), y)
        loss = method(base, y)
    assert loss.dtype == torch.float32
    loss.backward()
    optimizer.step()
    method.step()
    for value in method.state_dict().values():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert value.dtype == torch.float32


@each
def test_narrowing_it_with_a_network_keeps_its_own_state_in_float32(case):
    model, method = case.build(1)
    nn.ModuleList([model, method]).bfloat16()
    floating = [t for t in [*method.buffers(), *method.parameters()] if t.is_floating_point()]
    assert all(t.dtype == torch.float32 for t in floating)
    losses = train(model, method, sgd(model, method), 0, 2)
    assert torch.stack(losses).isfinite().all()
    method.double()
    assert all(t.dtype == torch.float64 for t in method.buffers() if t.is_floating_point())


@each
def test_it_learns_and_follows_the_protocol(case):
    model, method = case.build(1, net=source())
    assert isinstance(method, Stepper)
    x, y = batch(90, seed=999)
    losses = train(model, method, sgd(model, method), 0, 60)
    model.eval()
    assert torch.stack(losses).isfinite().all()
    assert (model(x).argmax(1) == y).float().mean() > 0.75


@each
def test_prepared_again_and_removed_it_leaves_no_hooks_of_its_own(case):
    model, method = case.build(1)
    first = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    method.prepare(model, [batch(seed=3), batch(seed=4)], steps=STEPS)
    again = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert again == first
    method.remove()
    left = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert left == (case.name in ("lp_ft", "linear_probe"))  # what keeps BatchNorm frozen stays
    with pytest.raises(InputError, match="not prepared"):
        method(torch.zeros(()), batch()[1])


@each
def test_a_validation_loss_moves_nothing(case):
    model, method, _ = trained(case, steps=HALF)
    before = copy.deepcopy(method.state_dict())
    x, y = batch(seed=5)
    with torch.no_grad():
        method.eval()(nn.functional.cross_entropy(model(x), y), y)
    method.train()
    after = method.state_dict()
    before["_extra_state"].pop("draws"), after["_extra_state"].pop("draws")
    assert same(dict(after), dict(before))


@each
def test_a_state_of_another_method_is_refused(case):
    _, method = case.build(1)
    with pytest.raises(InputError, match="prepare the same method"):
        method.load_state_dict({"something": torch.zeros(3)})


@each
def test_unprepared_it_says_so(case):
    with pytest.raises(InputError, match="not prepared: call prepare"):
        case.make(1)(torch.zeros(()), torch.zeros(3, dtype=torch.long))


def test_two_processes_with_a_break_agree_and_equal_one_process(tmp_path):
    # One test for all methods: starting the processes takes longer than training in them.
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    for name, case in METHODS.items():
        two, twin = (load_state(tmp_path / f"{name}-{rank}") for rank in (0, 1))
        assert same(two, twin), name
        if case.across or case.draws:
            continue
        model, method = case.build(1, norm=False, dtype=torch.float64)
        train(model, method, sgd(model, method), 0, STEPS)
        one = found(model, method)
        for part in ("model", "method"):
            assert two[part].keys() == one[part].keys()
            for key, value in one[part].items():
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(
                        two[part][key], value, rtol=0, atol=1e-9, msg=f"{name}: {key}"
                    )


@each
def test_classes_are_taken_in_any_integer_type(case):
    def loss(dtype):
        model, method = case.build(1)
        x, y = batch(3)  # as many images as classes: as a mask uint8 would fit
        return method(nn.functional.cross_entropy(model(x), y), y.to(dtype))

    whole = loss(torch.int64)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(loss(dtype), whole)


@each
def test_a_class_that_the_classifier_lacks_is_refused(case):
    model, method = case.build(1)
    x, y = batch(6)
    base = nn.functional.cross_entropy(model(x), y)
    with pytest.raises(InputError, match="targets have 3: expected 0 to 2, or below 0"):
        method(base, y + 1)
