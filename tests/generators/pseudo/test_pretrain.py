import copy

import pytest
import torch
from foreign_generators import AddedLabels, EmbeddedLabels

from regraft.data.views import Views
from regraft.errors import DivergenceError, InputError
from regraft.generators.pseudo import Pretraining, pretrain
from regraft.generators.sources import ModuleSource, draw_labels
from regraft.models import ConvSmall
from regraft.streams import Counter


def source(kind=EmbeddedLabels):
    torch.manual_seed(3)
    return ModuleSource(kind(), classes=4, latent=6)


def network(**options):
    torch.manual_seed(1)
    return ConvSmall(**{"num_classes": 4, "image_size": 8, **options})


def test_a_network_learns_the_classes_of_a_generator():
    g = source()
    net = pretrain(network(), g, steps=60, views=Views(), mean=(0.5,), std=(0.5,), lr=0.1)
    y = draw_labels(Counter(99), 0, 400, 4)
    x = g.sample(400, labels=y, generator=Counter(99))
    right = (net.eval()((x - 0.5) / 0.5).argmax(1) == y).float().mean()
    assert right > 0.6  # chance is 0.25
    assert all(p.grad is None for p in g.module.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_interrupted_one_goes_on_to_the_same_bits(dropout):
    def work():
        net = torch.nn.Sequential(network(), torch.nn.Dropout(dropout), torch.nn.Linear(4, 4))
        return Pretraining(net, source(), steps=8, batch_size=16)

    whole = work()
    while not whole.done:
        whole.step()
    half = work()
    for _ in range(3):
        half.step()
    rest = work()
    torch.manual_seed(99)
    rest.load_state_dict(copy.deepcopy(half.state_dict()))
    while not rest.done:
        rest.step()
    for a, b in zip(
        whole.network.state_dict().values(), rest.network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_progress_is_told_at_every_step():
    seen_ = []
    pretrain(network(), source(), steps=3, progress=lambda *row: seen_.append(row))
    assert [(at, steps) for at, steps, _ in seen_] == [(1, 3), (2, 3), (3, 3)]
    assert set(seen_[0][2]) == {"loss", "accuracy"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"net": {"num_classes": 5}}, r"gives \(5,\) for an image and the generator has 4 classes"),
        ({"net": {"image_size": 16}}, "cannot take the generator's images of 1x8x8"),
        ({"net": {"channels": 3}}, "cannot take the generator's images of 1x8x8"),
        ({"steps": 0}, "steps=0"),
        ({"lr": float("inf")}, "finite number above 0"),
        ({"optimizer": "adam"}, "expected sgd or adamw"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    net = network(**options.pop("net", {}))
    with pytest.raises(InputError, match=message):
        Pretraining(net, source(AddedLabels), **{"steps": 2, **options})


def test_a_loss_that_is_not_finite_stops_it():
    net = network()
    work = Pretraining(net, source(), steps=4)
    work.step()
    net.head.weight.data.fill_(float("nan"))
    with pytest.raises(DivergenceError, match="at step 2 of the pre-training"):
        work.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_may_compute_in_another_type(dtype):
    net = network().to(dtype)
    work = Pretraining(net, source(), steps=1)
    work.step()
    assert work.done
    assert net.head.weight.dtype is dtype


def test_dropout_draws_other_numbers_at_every_step_and_leaves_torchs_alone():
    net = torch.nn.Sequential(network(), torch.nn.Dropout(0.5))
    dropped = []
    net[1].register_forward_hook(lambda _, args, out: dropped.append(out == 0))
    work = Pretraining(net, source(), steps=2)
    dropped.clear()
    before = torch.get_rng_state()
    work.step()
    work.step()
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(*dropped)
