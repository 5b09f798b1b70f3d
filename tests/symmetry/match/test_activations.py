import pytest
import torch
from symmetry_specs import mlp, random_state, zoo
from torch import nn

from regraft.errors import InputError
from regraft.symmetry.match.activations import Activations, _Sums, producers
from regraft.symmetry.match.match import match
from regraft.symmetry.match.solver.pairs import Pairs

ZOO = zoo()


def inputs(x, n=3):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(40, *x.shape[1:], generator=g, dtype=torch.float64) for _ in range(n)]


@pytest.mark.parametrize("name", [n for n in ZOO if n != "grouped query"])
@pytest.mark.parametrize("statistic", ["correlation", "covariance"])
def test_a_copy_is_recovered_by_what_it_does(name, statistic):
    model, spec, x = ZOO[name]
    a = random_state(model, 0)
    for key in a:  # so that a softmax does not saturate
        if name == "heads" and key.split(".")[0] in ("wq", "wk"):
            a[key] = 0.3 * a[key]
    b = spec.apply(a, spec.random(2))
    found = match(spec, a, b, by=Activations(model.double(), inputs(x), statistic))
    back = spec.apply(b, found.permutation)
    assert all(torch.equal(back[k], a[k]) for k in a)
    assert found.unmatched == ()
    assert found.sweeps == 1


def test_the_correlation_is_numpys():
    g = torch.Generator().manual_seed(0)
    x, y = (5 + torch.randn(300, n, generator=g, dtype=torch.float64) for n in (4, 3))
    y = y + x[:, :3]
    sums = _Sums()
    for u, v in zip(x.split(70), y.split(70), strict=True):
        sums.add(u, v)
    whole = torch.cov(torch.cat([x, y], 1).T, correction=0)[:4, 4:]
    torch.testing.assert_close(sums.gains("covariance"), whole)
    whole = torch.corrcoef(torch.cat([x, y], 1).T)[:4, 4:]
    torch.testing.assert_close(sums.gains("correlation"), whole)


def test_a_dead_unit_is_like_no_other():
    model, spec = mlp([5, 6, 3])
    a = random_state(model, 0)
    a["0.weight"][2] = 0.0
    b = spec.apply(a, spec.random(1))
    x = [torch.randn(50, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))]
    gains = Activations(model.double(), x).pairs(spec, a, b).sums["0.weight"]
    assert (gains[2] == 0).all()
    found = match(spec, a, b, by=Activations(model.double(), x))
    assert torch.equal(spec.apply(b, found.permutation)["0.weight"], a["0.weight"])


def test_groups_that_no_layer_puts_out_are_named():
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.v = (nn.Parameter(torch.randn(4, 4)) for _ in range(2))
            self.first = nn.Linear(3, 4)

        def forward(self, x):
            return torch.relu(self.first(x)) @ self.w @ self.v

    from symmetry_specs import Group, Site, plain, spec_of

    model = Loose().double()
    groups = [
        Group("first.weight", 4, (Site("first.weight", 0, plain(4)), Site("w", 0, plain(4)))),
        Group("w", 4, (Site("w", 1, plain(4)), Site("v", 0, plain(4)))),
    ]
    spec = spec_of(model, groups)
    a, b = random_state(model, 0), random_state(model, 1)
    found = match(spec, a, b, by=Activations(model, [torch.randn(9, 3).double()]))
    assert found.unmatched == ("w",)
    assert found.permutation["w"].tolist() == [0, 1, 2, 3]


def test_the_model_is_left_as_it_was():
    model, spec, x = ZOO["residual"]
    model = model.double().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    match(spec, before, before, by=Activations(model, inputs(x)))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_the_layers_that_are_read():
    model, spec, _ = ZOO["residual"]
    found = [key[:2] for key in producers(spec, model)]
    assert ("stem.weight", "second.1") in found
    assert ("first.0.weight", "first.0") in found
    assert not any("norm" in module or "head" in module for _, module in found)


def test_wrong_arguments_are_named():
    model, spec, x = ZOO["mlp"]
    a = random_state(model, 0)
    model = model.double()
    with pytest.raises(InputError, match="no batches"):
        match(spec, a, a, by=Activations(model, []))
    with pytest.raises(InputError, match="statistic='cosine'"):
        match(spec, a, a, by=Activations(model, inputs(x), "cosine"))
    bad = {**a, "0.bias": torch.full_like(a["0.bias"], float("nan"))}
    with pytest.raises(InputError, match=r"b: 0\.bias has 7 of 7"):
        match(spec, a, bad, by=Activations(model, inputs(x)))
    assert isinstance(Activations(model, inputs(x)).pairs(spec, a, a), Pairs)
