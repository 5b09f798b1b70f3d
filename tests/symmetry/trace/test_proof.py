import pytest
import torch
from torch import nn
from tracing import Block, linear, shapes

from regraft.errors import InputError
from regraft.symmetry.spec.group import Group
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.trace.check import SymmetryError, check, deranged
from regraft.symmetry.trace.rules import RULES
from regraft.symmetry.trace.trace import trace


def test_the_network_is_left_as_it_was():
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Dropout(0.5), nn.BatchNorm1d(6), nn.Linear(6, 2)
    ).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trace(model, torch.randn(3, 4))
    assert model.training
    assert model[1].training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_network_that_cannot_be_traced_is_refused_with_the_reason():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) if x.sum().item() > 0 else x

    with pytest.raises(InputError, match=r"Branches cannot be traced .*torch\.where"):
        trace(Branches(), torch.randn(2, 4))


def test_wrong_example_inputs_are_refused():
    with pytest.raises(InputError, match="cannot be traced"):
        trace(nn.Linear(4, 2), torch.randn(2, 5))


def test_noise_in_the_forward_is_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.b(self.a(x) + torch.randn(6))

    with pytest.raises(InputError, match="other outputs each time"):
        trace(Noisy(), torch.randn(2, 4))


def test_the_proof_names_a_wrong_group():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    spec = trace(model, torch.randn(2, 4))
    wrong = dict(spec.groups)
    # The group forgets that the next layer reads it.
    wrong["2"] = Group("2", 5, tuple(s for s in spec.groups["2"].sites if s.tensor != "4.weight"))
    broken = PermutationSpec(wrong, spec.shapes)
    with pytest.raises(SymmetryError, match="'2'"):
        check(broken, model, torch.randn(2, 4))
    assert check(spec, model, torch.randn(2, 4), seeds=3) < 1e-10


def test_the_proof_sees_through_fresh_initialisation():
    # Scales of 1 and shifts of 0 are the same for all channels: only noise shows a wrong site.
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(2, 3, 2, 2)
    spec = trace(model, x)
    (group,) = spec
    sites = tuple(s for s in group.sites if s.tensor != "1.running_mean")
    with pytest.raises(SymmetryError):
        check(PermutationSpec({group.name: Group(group.name, 4, sites)}, spec.shapes), model, x)


def test_a_wrong_rule_is_caught_and_the_group_stays(monkeypatch):
    monkeypatch.setitem(RULES, "cumsum", RULES["relu"])
    model = Block(
        lambda m, x: m.out(m.b(m.a(x)).cumsum(1)), a=linear(4, 7), b=linear(7, 6), out=linear(6, 2)
    )
    with pytest.warns(UserWarning, match="does not leave the outputs"):
        spec = trace(model, torch.randn(3, 4))
    assert [g.size for g in spec] == [7]
    assert any("proof failed" in pin.reason for pin in spec.pins)


def test_the_proof_leaves_no_unit_in_place():
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 3))
    spec = trace(model, torch.randn(2, 4))
    for seed in range(20):
        assert deranged(spec, seed)["0"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m, x: m.out(m.a(x)) * 0, "do not depend on its weights"),
        (lambda m, x: m.out(m.a(x)) * float("nan"), "is a finite number"),
        (lambda m, x: m.out(m.a(x)[x[:, 0] > -9]), "size depends on values"),
    ],
)
def test_an_empty_proof_is_refused(change, said):
    model = Block(change, a=linear(4, 6), out=linear(6, 2))
    with pytest.raises(InputError, match=said):
        trace(model, torch.randn(3, 4))


def test_weights_on_the_meta_device_can_be_traced_without_a_proof():
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(3, 4)
    with pytest.raises(InputError, match="meta device"):
        trace(model, x)
    assert shapes(trace(model, x, check_it=False)) == {(6,): 1}


def test_a_network_that_amplifies_rounding_is_not_accused():
    layers = [nn.Linear(32, 32) for _ in range(40)]
    for layer in layers:
        nn.init.normal_(layer.weight)
    model = Block(
        lambda m, x: [x := torch.sin(3 * layer(x)) for layer in m.values()][-1],
        **{f"l{i}": layer for i, layer in enumerate(layers)},
    )
    with pytest.warns(UserWarning, match="rounding alone .* not proved"):
        spec = trace(model, torch.randn(2, 32))
    assert spec.checked is None
    assert len(spec) == 39


def test_complex_weights_are_proved_as_real_ones_are():
    def forward(m, x):
        h = m.a(x.to(torch.complex64))
        return m.out(torch.complex(h.real.relu(), h.imag.relu())).abs()

    model = Block(
        forward,
        a=nn.Linear(4, 6, dtype=torch.complex64),
        out=nn.Linear(6, 2, dtype=torch.complex64),
    )
    assert shapes(trace(model, torch.randn(3, 4))) == {(6,): 1}
