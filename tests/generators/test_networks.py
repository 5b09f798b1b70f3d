import pytest
import torch
from torch import nn

from regraft.errors import InputError
from regraft.generators.networks import freeze_norms_, fresh, refuse_misfit
from regraft.models import MLP, ConvSmall

CPU = torch.device("cpu")


def test_a_network_belongs_to_its_seed_and_leaves_the_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (fresh(lambda: MLP(4, (3,), 2), s, CPU) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    assert not first.training


def test_a_factory_that_makes_no_network_is_refused():
    with pytest.raises(InputError, match="network returned a int"):
        fresh(lambda: 3, 0, CPU)  # type: ignore[arg-type]


def test_frozen_norms_have_the_statistics_of_the_images_and_keep_them():
    torch.manual_seed(0)
    model = ConvSmall(2, channels=1, image_size=8)
    images = torch.randn(30, 1, 8, 8) * 3 + 1
    freeze_norms_(model, torch.randn(30, 1, 8, 8))  # what came before must not count
    freeze_norms_(model, images)
    norm = model.features[1]
    seen = model.features[0](images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(norm.running_mean, seen.mean(1))
    torch.testing.assert_close(norm.running_var, seen.var(1))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    alone = model(images[:1])
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    torch.testing.assert_close(model(images)[:1], alone)
    assert norm.momentum == 0.1


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_every_norm_that_tracks_statistics_is_frozen(kind):
    norm = kind(2, track_running_stats=True)
    images = torch.randn(9, 2, 5, 5) * 3 + 1
    freeze_norms_(norm, images)
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)))
    both = norm(images[:2])
    torch.testing.assert_close(both[:1], norm(images[:1]))


def test_dropout_is_off():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(4, 2))
    freeze_norms_(model, torch.randn(4, 1, 2, 2))
    x = torch.randn(1, 1, 2, 2)
    assert torch.equal(model(x), model(x))


def test_norms_that_cannot_be_frozen_are_refused():
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False))
    with pytest.raises(InputError, match="track_running_stats"):
        freeze_norms_(model, torch.randn(4, 1, 2, 2))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no trainable weight"),
        (MLP(9, (3,), 2), r"cannot be given images of shape \[1, 2, 2\]"),
        (MLP(4, (3,), 5), r"returned \[2, 5\] for 2 images: expected \[2, 2\]"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(model, message):
    with pytest.raises(InputError, match=message):
        refuse_misfit(model, (1, 2, 2), 2)
