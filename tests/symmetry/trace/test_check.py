"""That the proof does not rest on what masks and tables of a fresh network hold."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from regraft.symmetry.trace.check import SymmetryError, check
from regraft.symmetry.trace.trace import trace
from regraft.symmetry.trace.varied import varied, whole


class Masked(nn.Module):
    def __init__(self, dtype=torch.bool):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("mask", torch.ones(6, dtype=dtype))
        self.register_buffer("table", torch.arange(2))

    def forward(self, x):
        return self.b(self.a(x) * self.mask)[:, self.table]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_a_spec_that_forgets_a_mask_is_refused_on_a_fresh_network(dtype):
    model, x = Masked(dtype), torch.randn(3, 4)
    spec = trace(model, x)
    (group,) = spec
    sites = tuple(site for site in group.sites if site.tensor != "mask")
    forgetful = replace(spec, groups={group.name: replace(group, sites=sites)})
    with pytest.raises(SymmetryError, match=group.name):
        check(forgetful, model, x)
    assert check(spec, model, x, seeds=3) < 1e-12


def test_a_network_that_cannot_take_other_entries_is_proved_with_its_own():
    class OneRow(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.row = nn.Linear(4, 6), nn.Linear(6, 2), nn.Embedding(1, 2)
            self.register_buffer("at", torch.zeros(3, dtype=torch.int64))
            self.register_buffer("mask", torch.ones(6, dtype=torch.bool))

        def forward(self, x):
            return self.b(self.a(x) * self.mask) + self.row(self.at).sum(0)

    model, x = OneRow(), torch.randn(3, 4)
    spec = trace(model, x)
    assert spec.checked < 1e-12
    assert sorted(group.size for group in spec) == [3, 6]
    assert model.mask.all()
    forgetful = replace(
        spec,
        groups={
            group.name: replace(group, sites=tuple(s for s in group.sites if s.tensor != "mask"))
            for group in spec
        },
    )
    with pytest.raises(SymmetryError):
        check(forgetful, model, x)


def test_other_entries_are_the_tensor_s_own_or_their_opposite():
    state = {
        "order": torch.arange(12).reshape(3, 4),
        "ones": torch.ones(7, dtype=torch.bool),
        "zeros": torch.zeros(4, dtype=torch.int32),
        "count": torch.tensor(5),
        "weight": torch.randn(3),
    }
    state["tied"] = state["order"]
    names = whole(state)
    assert names == ["order", "ones", "zeros", "tied"]
    found = varied(state, names, 0)
    assert found["tied"] is found["order"]
    assert sorted(found["order"].flatten().tolist()) == list(range(12))
    assert not torch.equal(found["order"], state["order"])
    assert found["ones"].sum() == 3
    assert found["zeros"].sum() == 2
    assert {k: (v.dtype, v.shape) for k, v in found.items()} == {
        k: (state[k].dtype, state[k].shape) for k in names
    }
    assert state["ones"].all()
