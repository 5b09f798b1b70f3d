import copy

import pytest
import torch

from features import STEPS, batch, loader, network
from regraft.features import AdaRand

pytest.importorskip("timm.task", reason="timm has no timm.task before 1.0.31")

from regraft.integrations.timm_task import FinetuneTask


def made(seed=1):
    model = network(seed)
    method = AdaRand(seed=seed).prepare(model, loader(), steps=STEPS)
    task = FinetuneTask(model, method, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    return task, optimizer, method.follow(optimizer)


def train(task, optimizer, first, last):
    task.train()
    losses = []
    for step in range(first, last):
        result = task(*batch(seed=step))
        result["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(result["loss"].detach())
    return losses


def test_the_task_adds_the_term_and_steps_with_the_optimiser():
    task, optimizer, _ = made()
    task.train()
    x, y = batch()
    result = task(x, y)
    features = task.trainable_module[:-1](x)
    draws = task.method._draws
    task.method._draws = 0
    z = task.method.reference(y)
    task.method._draws = draws
    expected = result["base_loss"] + (features - z).square().mean() / task.method.variance
    torch.testing.assert_close(result["loss"], expected)
    train(task, optimizer, 0, 3)
    assert task.method._steps == 3
    task.eval()
    with torch.no_grad():
        result = task(x, y)
    assert torch.equal(result["loss"], result["base_loss"])


def test_timms_checkpoint_holds_the_method():
    straight, optimizer, _ = made()
    train(straight, optimizer, 0, STEPS)
    half, optimizer, _ = made()
    train(half, optimizer, 0, 3)
    saved = copy.deepcopy(half.get_checkpoint_state())
    other, optimizer, _ = made(2)
    other.load_checkpoint_state(saved["state_dict"], saved["task_state"])
    train(other, optimizer, 3, STEPS)
    for (name, a), b in zip(
        other.state_dict().items(), straight.state_dict().values(), strict=True
    ):
        assert a == b if isinstance(a, dict) else torch.equal(a, b), name


def test_a_step_that_is_not_taken_is_not_counted_and_the_handle_lets_go():
    task, optimizer, handle = made()
    handle.remove()
    train(task, optimizer, 0, 2)
    assert task.method._steps == 0
