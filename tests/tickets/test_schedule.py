import pytest
import torch
from networks import conv_net
from torch import nn

from regraft.errors import InputError
from regraft.tickets import Freezing, SparsitySchedule, edge_popup, score_penalty, sparsity


@pytest.mark.parametrize(
    ("shape", "halfway"), [("linear", 0.4), ("cubic", 0.7), ("geometric", 1 - 0.2**0.5)]
)
def test_sparsity_moves_from_start_to_target(shape, halfway):
    model = edge_popup(nn.Linear(100, 100), sparsity=0.8)
    schedule = SparsitySchedule(model, steps=10, shape=shape)
    seen = [sparsity(model)]
    for _ in range(12):
        schedule.step()
        seen.append(sparsity(model))
    assert seen[0] == 0
    assert seen[5] == pytest.approx(halfway, abs=1e-3)
    assert seen[10] == seen[12] == pytest.approx(0.8, abs=1e-3)
    assert seen == sorted(seen)


@pytest.mark.parametrize(("scope", "allocation"), [("layer", "uniform"), ("global", "erk")])
@pytest.mark.parametrize(("start", "first"), [(0.0, 0.3), (0.5, 0.5), (1.0, 0.8)])
def test_with_frozen_weights_it_starts_at_the_nearest_that_they_allow(
    scope, allocation, start, first
):
    freezing = Freezing(0.3, 0.2, allocation)
    model = edge_popup(conv_net(), sparsity=0.6, scope=scope, freezing=freezing)
    schedule = SparsitySchedule(model, steps=10, start=start)
    assert [m.sparsity for m in schedule.masks] == pytest.approx([first] * 3, abs=0.01)
    seen = [sparsity(model)]
    for _ in range(10):
        schedule.step()
        seen.append(sparsity(model))
    assert seen[0] == pytest.approx(first, abs=0.01)
    assert seen[5] == pytest.approx((first + 0.6) / 2, abs=0.01)
    assert seen[10] == pytest.approx(0.6, abs=0.01)


def test_it_goes_on_where_it_stopped():
    model = edge_popup(conv_net(), sparsity={"7.*": 0.9, "*": 0.3})
    schedule = SparsitySchedule(model, steps=10)
    for _ in range(4):
        schedule.step()
    other = edge_popup(conv_net(), sparsity=0.1)
    again = SparsitySchedule(other, steps=10)
    again.load_state_dict(schedule.state_dict())
    assert sparsity(other) == pytest.approx(sparsity(model), abs=0.02)
    assert [m.sparsity for m in again.masks] == [m.sparsity for m in schedule.masks]


def test_the_penalty_is_the_sum_of_squared_scores():
    model = edge_popup(conv_net(), seed=1)
    scores = [p for p in model.parameters() if p.requires_grad]
    assert score_penalty(model).detach().item() == pytest.approx(
        sum((s.detach() ** 2).sum().item() for s in scores)
    )
    score_penalty(model).backward()
    torch.testing.assert_close(scores[0].grad, 2 * scores[0].detach())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 3, "start": 1.5}, r"sparsity=1\.5"),
        ({"steps": 3, "start": 1.0, "shape": "geometric"}, "geometric"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SparsitySchedule(edge_popup(nn.Linear(3, 3)), **arguments)


def test_a_plain_model_is_refused():
    with pytest.raises(InputError, match="no edge-popup mask"):
        SparsitySchedule(nn.Linear(3, 3), steps=3)
    with pytest.raises(InputError, match="no edge-popup mask"):
        score_penalty(nn.Linear(3, 3))
