import itertools
import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regraft.config import OptimConfig, Schedule
from regraft.errors import InputError
from regraft.train import lr_factor, make_optimizer, make_scheduler

IMAGENET = OptimConfig(
    lr=0.1, epochs=105, warmup_epochs=5, cooldown_epochs=5, cooldown_lr=1e-5, momentum=0.9
)


def rate(config, steps_per_epoch, step):
    """Return the learning rate of a step, case by case as the papers give it."""
    epoch, position = step // steps_per_epoch, step / steps_per_epoch
    first, last = config.warmup_epochs, config.epochs - config.cooldown_epochs
    if epoch < first:
        return config.lr * (epoch + 1) / first
    if epoch >= last and config.cooldown_epochs > 0:
        return config.cooldown_lr
    done = (position - first) / (last - first)
    quarter = 4 * (step - first * steps_per_epoch) // ((last - first) * steps_per_epoch)
    shares = {
        "constant": 1.0,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "linear": 1 - done,
        "multistep": (1, 1, 0.1, 0.01)[quarter],
        "multistep-30-60-80": 1
        if done < 0.3
        else 0.1
        if done < 0.6
        else 0.01
        if done < 0.8
        else 1e-3,
        "epoch-cosine": (1 + math.cos(math.pi * (epoch - first) / (last - first))) / 2,
    }
    return config.lr * shares[config.schedule]


@given(
    schedule=st.sampled_from(get_args(Schedule)),
    warmup=st.integers(0, 4),
    middle=st.integers(1, 6),
    cooldown=st.integers(0, 4),
    steps=st.integers(1, 7),
)
def test_the_schedules_are_their_formulas_at_every_step(schedule, warmup, middle, cooldown, steps):
    config = OptimConfig(
        lr=0.3,
        schedule=schedule,
        epochs=warmup + middle + cooldown,
        warmup_epochs=warmup,
        cooldown_epochs=cooldown,
        cooldown_lr=1e-3,
    )
    factor = lr_factor(config, steps)
    for step in range(config.epochs * steps):
        assert factor(step) * config.lr == pytest.approx(rate(config, steps, step), rel=1e-12)


def test_the_published_imagenet_schedule():
    factor = lr_factor(IMAGENET, 10)
    rates = [0.1 * factor(10 * epoch) for epoch in range(105)]
    assert rates[:6] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert rates[5 + 19] == pytest.approx(0.05 * (1 + math.cos(math.pi * 19 / 95)))
    assert rates[99] == pytest.approx(0.05 * (1 + math.cos(math.pi * 94 / 95)))
    assert rates[100:] == pytest.approx([1e-5] * 5)
    assert all(a > b for a, b in itertools.pairwise(rates[5:101]))
    # Within an epoch the rate stands still.
    assert {factor(step) for step in range(400, 410)} == {factor(400)}


def test_a_step_after_the_last_one_keeps_the_end_of_the_cosine():
    # torch asks for one step more than are taken.
    for schedule in ("cosine", "epoch-cosine"):
        assert lr_factor(OptimConfig(epochs=3, schedule=schedule), 4)(12) == pytest.approx(0)


def test_the_scheduler_gives_the_optimiser_these_rates():
    config = OptimConfig(lr=0.2, epochs=4, warmup_epochs=1)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    scheduler = make_scheduler(optimizer, config, 3)
    for step in range(12):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate(config, 3, step))
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 10, "warmup_epochs": 5, "cooldown_epochs": 5}, "leave none between them"),
        ({"epochs": 3, "warmup_epochs": 4}, "4 warm-up and 0 cool-down epochs"),
        ({"epochs": -1}, "epochs=-1: expected at least 0"),
    ],
)
def test_impossible_schedules_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        lr_factor(OptimConfig(**changes), 5)


def test_no_epoch_at_all_is_a_schedule_too():
    assert lr_factor(OptimConfig(epochs=0), 5)(0) == 1.0


@pytest.mark.parametrize(
    ("changes", "kind", "group"),
    [
        (
            {"lr": 0.3, "momentum": 0.8, "weight_decay": 1e-3, "nesterov": True},
            torch.optim.SGD,
            {"lr": 0.3, "momentum": 0.8, "weight_decay": 1e-3, "nesterov": True},
        ),
        (
            {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05},
            torch.optim.AdamW,
            {"lr": 1e-3, "weight_decay": 0.05},
        ),
    ],
)
def test_the_optimiser_has_the_values_of_the_config(changes, kind, group):
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    made = make_optimizer(model, OptimConfig(**changes))
    assert type(made) is kind
    assert {key: made.param_groups[0][key] for key in group} == group
    assert made.param_groups[0]["params"] == [model.weight]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("changes", [{"lr": -0.1}, {"weight_decay": -1.0}])
def test_values_out_of_range_are_refused(optimizer, changes):
    with pytest.raises(InputError, match=rf"optimizer='{optimizer}': Invalid .*: -"):
        make_optimizer(nn.Linear(2, 2), OptimConfig(optimizer=optimizer, **changes))


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(InputError, match="Nesterov momentum requires a momentum"):
        make_optimizer(nn.Linear(2, 2), OptimConfig(nesterov=True, momentum=0.0))


def test_a_model_without_a_trainable_parameter_is_refused():
    with pytest.raises(InputError, match="no trainable parameter"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())
