import copy

import pytest
import torch
from symmetry_specs import random_state, residual
from torch import nn
from transfer_cases import Source, gradient, scaled, setting

from regraft.errors import InputError
from regraft.symmetry.transfer.gradients import Gradients
from regraft.symmetry.transfer.transfer import transfer


def test_both_networks_together_give_the_same_gradients():
    model, _, _ = residual()
    states = [scaled(random_state(model, i, dtype=torch.float32)) for i in range(2)]
    source = Source((3, 2, 2), dtype=torch.float32)
    one, two = (
        Gradients(model, source, count=2, together=together).at(states, ["a", "b"], 3)
        for together in (False, True)
    )
    for a, b, state in zip(one, two, states, strict=True):
        wanted = gradient(model, state, [b[:2] for b in list(source.batches(3 << 20))[:2]])
        assert a.keys() == b.keys() == wanted.keys()
        for k in a:
            torch.testing.assert_close(a[k], wanted[k], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(b[k], wanted[k], rtol=1e-4, atol=1e-6)


def test_the_network_is_left_as_it_was_and_dropout_is_off():
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.9), nn.Linear(8, 3)
    ).double()
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    state = scaled(random_state(model, 4))
    data = Gradients(model, Source((6,)))
    data.check(state, "it")
    found = data.at([state], ["it"], 0)[0]
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model[3].p = 0.0
    wanted = gradient(model, state, [next(data.batches.batches(0))[:2]])
    for k in wanted:
        torch.testing.assert_close(found[k], wanted[k])


def test_a_loader_of_pairs_will_do_and_short_epochs_go_on():
    spec, model, line, target, source = setting(1)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(source.x, source.y), batch_size=32
    )
    data = Gradients(model, loader, count=5)
    *_, found = transfer(line, target, spec, data, by="gmt")
    assert found.costs.count == len(line) * (len(line) + 1)
    wanted = gradient(model, target, [*loader, *list(loader)[:2]])
    for k, v in data.at([target], ["x"], 0)[0].items():
        torch.testing.assert_close(v, wanted[k])
    with pytest.raises(InputError, match="read only once"):
        Gradients(model, iter([]), count=1).at([target], ["x"], 0)


class Same:
    """One batch, over and over."""

    def __init__(self, dtype=torch.float64, classes=3):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(16, 6, generator=g, dtype=torch.float64).to(dtype)
        self.y = torch.randint(0, classes, (16,), generator=g)

    def __len__(self):
        return 8

    def batches(self, epoch, *, start=0, rank=0, world=1):
        for _ in range(8):
            yield self.x, self.y, 16


class Shared(nn.Module):
    """The sum of two parameters, and the sum over one: autograd gives one tensor for both, expanded."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 3)
        self.a, self.b, self.total = (nn.Parameter(torch.randn(3)) for _ in range(3))

    def forward(self, x):
        return self.first(x) + (self.a + self.b) + self.total.sum() * x[:, :3]


@pytest.mark.parametrize("together", [False, True])
def test_the_mean_of_equal_batches_is_the_gradient_of_one(together):
    model = Shared().double()
    states = [scaled(random_state(model, i)) for i in range(2)]
    one, four = (
        Gradients(model, Same(), count=count, together=together).at(states, ["a", "b"], 0)
        for count in (1, 4)
    )
    for a, b, state in zip(one, four, states, strict=True):
        wanted = gradient(model, state, [(Same().x, Same().y)])
        assert a.keys() == b.keys() == wanted.keys()
        for k in a:
            torch.testing.assert_close(a[k], wanted[k])
            torch.testing.assert_close(b[k], wanted[k])
        # Each is a tensor of its own.
        storages = [v.untyped_storage().data_ptr() for v in (*a.values(), *b.values())]
        assert len(set(storages)) == len(storages)
        assert all(v.is_contiguous() for v in b.values())


def test_many_batches_are_added_up_in_float32_whatever_the_weights_are():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).bfloat16()
    state = scaled(random_state(model, 1, dtype=torch.bfloat16))
    source, count = Source((6,), n=400, batch=4, dtype=torch.bfloat16), 100
    found = Gradients(model, source, count=count).at([state], ["it"], 0)[0]
    single = Gradients(model, source, count=1)
    parts = [single.at([state], ["it"], 0, skip=i)[0] for i in range(count)]
    for name, value in found.items():
        assert value.dtype == torch.bfloat16
        wanted = torch.stack([part[name].double() for part in parts]).mean(0)
        assert torch.equal(value, wanted.to(torch.bfloat16))
        narrow = sum((part[name] for part in parts[1:]), parts[0][name]) / count
        assert not torch.equal(narrow, value)  # so many batches tell the two apart


def test_double_stays_double():
    model = nn.Linear(6, 3).double()
    state = scaled(random_state(model, 0))
    found = Gradients(model, Same(), count=3).at([state], ["it"], 0)[0]
    wanted = gradient(model, state, [(Same().x, Same().y)])
    for k, v in found.items():
        assert v.dtype == torch.float64
        torch.testing.assert_close(v, wanted[k], rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("label", "skipped"), [(7, 0), (-1, 0), (7, 2), (-2, 1)])
def test_a_label_without_a_place_is_told_in_whichever_batch_it_is(together, label, skipped):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    state = scaled(random_state(model, 2))
    source = Source((6,))
    x, y = source.x, source.y.clone()
    y[32 * skipped + 5] = label
    loader = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 96, 32)]
    data = Gradients(model, loader, count=3, together=together)
    with pytest.raises(InputError, match=rf"a label {label} and the network 3 outputs"):
        data.at([state, state], ["a", "b"], 0)
    if skipped:
        Gradients(model, loader, count=skipped, together=together).at([state, state], ["a", "b"], 0)


def test_labels_that_are_no_classes_are_left_to_the_loss():
    model = nn.Linear(6, 3).double()
    soft = [(Same().x, torch.full((16, 3), 1 / 3, dtype=torch.float64))]
    found = Gradients(model, soft).at([scaled(random_state(model, 0))], ["it"], 0)[0]
    assert set(found) == {"weight", "bias"}
