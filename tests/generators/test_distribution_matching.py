import pytest
import torch
from torch import nn

from regraft.data import ImageSet
from regraft.errors import InputError
from regraft.generators import CondenseConfig, Condenser, distribution_matching
from regraft.generators.distribution_matching import class_means, classifier_of, distance, embed
from regraft.models import MLP
from regraft.models.classifier import find_classifier


def test_class_means_are_those_of_one_class_after_the_other():
    torch.manual_seed(0)
    model = MLP(12, (5, 4), 3).double()
    batches = [torch.randn(n, 3, 2, 2, dtype=torch.float64) for n in (3, 1, 5)]
    slow = torch.stack([model.features(b).mean(0) for b in batches])
    torch.testing.assert_close(class_means(model, batches), slow)
    other = torch.randn(3, 4, dtype=torch.float64)
    expected = sum(((slow[k] - other[k]) ** 2).sum() for k in range(3))
    torch.testing.assert_close(distance(slow, other), expected)


def test_any_network_is_read_before_its_last_linear_layer():
    torch.manual_seed(0)
    model = MLP(12, (5, 4), 3)
    plain = nn.Sequential(*model.features, model.head)
    images = torch.randn(2, 3, 2, 2)
    torch.testing.assert_close(embed(plain, images), embed(model, images))
    assert not plain[-1]._forward_pre_hooks


class HeadFirst(nn.Module):
    """Registers its classifier before its body."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 2)
        self.body = nn.Linear(48, 16)

    def hidden(self, x):
        return torch.relu(self.body(x.flatten(1)))

    def forward(self, x):
        return self.head(self.hidden(x))


class Squeezed(nn.Module):
    """Has linear layers inside its body (squeeze-excite) and a 1x1 convolution for its classifier."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 16, 1)
        self.scale = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16))
        self.classifier = nn.Conv2d(16, 2, 1)

    def hidden(self, x):
        h = torch.relu(self.body(x))
        h = h * self.scale(h.mean((2, 3))).sigmoid()[:, :, None, None]
        return h.mean((2, 3))

    def forward(self, x):
        return self.classifier(self.hidden(x)[:, :, None, None]).flatten(1)


class Auxiliary(HeadFirst):
    """Has a head that only training would use."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(16, 2)


@pytest.mark.parametrize("kind", [HeadFirst, Squeezed, Auxiliary])
def test_the_embedding_is_the_input_of_the_classifier_in_whatever_order_layers_are(kind):
    torch.manual_seed(0)
    model, images = kind(), torch.randn(4, 3, 4, 4)
    name = classifier_of(model, images)
    torch.testing.assert_close(embed(model, images, name), model.hidden(images))
    torch.testing.assert_close(embed(model, images), model.hidden(images))


@pytest.mark.parametrize("kind", [HeadFirst, Squeezed])
def test_condensing_matches_the_means_of_that_embedding(kind):
    torch.manual_seed(0)
    images = ImageSet(torch.randint(0, 256, (12, 3, 4, 4)).byte(), torch.arange(12) % 2, 2)
    config = CondenseConfig(restarts=1, norm_batch=4, real_batch=6, transforms=())
    condenser = Condenser(images, kind, per_class=2, method="dm", config=config)
    network = condenser._network(0)
    real = [condenser.real.batch(c, 6, 0) for c in range(2)]
    with torch.no_grad():
        means = [
            torch.stack([network.hidden(x).mean(0) for x in side])
            for side in (real, condenser.images)
        ]
    expected = (means[0] - means[1]).square().sum().item() / 2
    condenser.step()
    assert condenser.losses[0] == pytest.approx(expected, rel=1e-5)


def test_the_classifier_is_looked_for_once(monkeypatch):
    looked = []

    def counted(model, **options):
        looked.append(1)
        return find_classifier(model, **options)

    monkeypatch.setattr(distribution_matching, "find_classifier", counted)
    images = ImageSet(torch.randint(0, 256, (12, 3, 4, 4)).byte(), torch.arange(12) % 2, 2)
    config = CondenseConfig(restarts=3, norm_batch=4, real_batch=6)
    Condenser(images, HeadFirst, per_class=2, method="dm", config=config).run()
    assert len(looked) == 1


class Summed(nn.Module):
    """Has two classifiers whose sum is its output."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(48, 2), nn.Linear(48, 2)

    def forward(self, x):
        return self.left(x.flatten(1)) + self.right(x.flatten(1))


class Tokens(nn.Module):
    """Averages the logits of its tokens."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(x.flatten(2).transpose(1, 2)).mean(1)


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Conv2d(3, 3, 4), nn.Flatten()), Summed(), Tokens()]
)
def test_a_network_without_one_classifier_of_vectors_is_refused(model):
    with pytest.raises(InputError, match=r"no linear classifier.*method='dc'"):
        embed(model, torch.rand(2, 3, 4, 4))
