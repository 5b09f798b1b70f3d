"""What only training uses is named, and so is what the example does not reach."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regraft.symmetry.spec.printing import describe
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.trace.trace import trace

X = torch.randn(5, 4)


class Trunk(nn.Module):
    """Two hidden layers, and something else in training."""

    def __init__(self, also, **more):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.more = nn.ModuleDict(more)
        self.token = nn.Parameter(torch.randn(8))
        self.also = also

    def forward(self, x):
        h = F.relu(self.a(x))
        y = self.out(F.relu(self.b(h)))
        return self.also(self, h, y) if self.training else y


def auxiliary(net, h, y):
    return y, net.more["last"](F.relu(net.more["first"](h)))


@pytest.mark.parametrize("check_it", [True, False])
def test_an_auxiliary_head_is_named_and_stays(check_it):
    model = Trunk(auxiliary, first=nn.Linear(8, 7), last=nn.Linear(7, 3), idle=nn.Linear(5, 5))
    torch.manual_seed(0)
    state, generator = model.train().state_dict(), torch.get_rng_state()
    with pytest.warns(
        UserWarning, match=r"Trunk: more.first.weight: used in training only"
    ) as told:
        spec = trace(model, X, check_it=check_it)
    assert len(told) == 1
    assert told[0].filename == __file__
    assert set(spec.left_behind) == {"more.first.weight", "token"}
    assert "left behind: more.first.weight: used in training only" in describe(spec)
    assert PermutationSpec.from_json(spec.to_json()).left_behind == spec.left_behind
    reasons = {p.tensor: p.reason for p in spec.pins}
    assert reasons["more.idle.weight"] == "it is not used in forward"
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    ("also", "named"),
    [
        (lambda net, h, y: y + net.out(F.dropout(h + net.token)), ("token",)),
        (lambda net, h, y: y + net.out(F.dropout(h)), ("token",)),
    ],
)
def test_any_parameter_counts_not_only_those_of_layers(also, named):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec = trace(Trunk(also), X)
    assert spec.left_behind == named
    assert "left behind: token" in describe(spec)


def test_where_training_cannot_be_tried_what_it_may_use_is_named():
    def labels(net, h, y):
        raise ValueError("labels are missing")

    with pytest.warns(UserWarning, match="token"):
        spec = trace(Trunk(labels), X)
    assert spec.left_behind == ("token",)


def test_nothing_is_said_where_nothing_moves():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.aux = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return (self.out(x), self.aux(x)) if self.training else self.out(x)

    assert trace(Linear(), X).left_behind == ()


class Tasks(nn.Module):
    """A trunk and a head for each task, chosen by an argument, a flag, or a count in the input."""

    def __init__(self, choose):
        super().__init__()
        self.trunk, self.small = nn.Linear(4, 8), nn.Linear(6, 2)
        self.heads = nn.ModuleDict({"a": nn.Linear(8, 3), "b": nn.Linear(8, 5)})
        self.choose = choose

    def forward(self, x, task):
        return self.heads[self.choose(task)](F.relu(self.trunk(x)))


@pytest.mark.parametrize("check_it", [True, False])
@pytest.mark.parametrize(
    ("choose", "task"),
    [
        (lambda task: task, "a"),
        (lambda task: "ab"[task], 0),
        (lambda task: "b" if task.sum() > 0 else "a", torch.zeros(3, dtype=torch.int64)),
    ],
)
def test_the_head_of_another_task_is_named(choose, task, check_it):
    model = Tasks(choose)
    with pytest.warns(
        UserWarning, match=r"^Tasks: heads\.b\.weight: not used with these example"
    ) as w:
        spec = trace(model, (X, task), check_it=check_it)
    assert len(w) == 1
    assert w[0].filename == __file__
    assert spec.left_behind == ("heads.b.weight",)  # nothing that moves has the length of `small`
    assert "left behind: heads.b.weight: not used with these example inputs" in describe(spec)
    assert PermutationSpec.from_json(spec.to_json()).left_behind == spec.left_behind


def test_both_reasons_are_told_apart():
    model = Trunk(auxiliary, first=nn.Linear(8, 7), last=nn.Linear(7, 3), other=nn.Linear(8, 4))
    with pytest.warns(
        UserWarning, match=r"more.first.weight: used in .*; .*other.weight.*: not used"
    ):
        spec = trace(model, X)
    assert {"more.first.weight", "more.other.weight"} <= set(spec.left_behind)
