import pytest
import torch
from foreign_generators import Decoder

from regraft.errors import InputError
from regraft.generators.pseudo import ImagePool, PseudoSamples, conditions
from regraft.generators.sources import ModuleSource
from regraft.streams import Counter

IMAGES = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Classifier(torch.nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))
        self.images = 0

    def forward(self, x):
        self.images += len(x)
        return self.net(x)


def test_the_classifier_is_run_once_for_each_image():
    classifier = Classifier()
    q = conditions(classifier, IMAGES, 4, batch_size=7)
    assert classifier.images == 30
    pool = PseudoSamples(ModuleSource(Decoder(), classes=4, latent=6), q, seed=0)
    for step in range(3):
        pool.take(step * 20, 20)
    assert classifier.images == 30
    torch.testing.assert_close(q, classifier(IMAGES).softmax(1).detach())


def test_the_limits_of_the_temperature_are_hard_and_uniform():
    classifier = Classifier()
    hard = conditions(classifier, IMAGES, 4, kind="hard")
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(conditions(classifier, IMAGES, 4, temperature=1e-4), hard)
    before = classifier.images
    uniform = conditions(classifier, IMAGES, 4, kind="uniform")
    assert classifier.images == before
    torch.testing.assert_close(uniform, torch.full((30, 4), 0.25))
    torch.testing.assert_close(
        conditions(classifier, IMAGES, 4, temperature=1e6), uniform, atol=1e-4, rtol=0
    )


def test_pseudo_samples_are_the_generators_for_rows_of_the_conditions():
    g = ModuleSource(Decoder(), classes=4, latent=6)
    q = conditions(Classifier(), IMAGES, 4)
    pool = PseudoSamples(g, q, seed=3)
    whole = pool.take(0, 50)
    torch.testing.assert_close(whole, torch.cat([pool.take(0, 9), pool.take(9, 41)]))
    z = g.latents(50, Counter(3, "pseudo"))
    made = [g.sample(30, probabilities=q, latents=z[i].expand(30, -1)) for i in range(50)]
    nearest = torch.stack(
        [(m - x).abs().amax((1, 2, 3)).min() for m, x in zip(made, whole, strict=True)]
    )
    assert nearest.max() < 1e-5


def test_a_pool_shows_each_image_once_in_a_pass():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    pool = ImagePool(images, seed=1)
    first = (pool.take(0, 10) * 255).flatten().round().long()
    second = (pool.take(10, 10) * 255).flatten().round().long()
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    across = (pool.take(7, 6) * 255).flatten().round().long()
    assert across.tolist() == torch.cat([first[7:], second[:3]]).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 5}, r"gives \(4,\) numbers an image and the generator has 5 classes"),
        ({"kind": "argmax"}, "expected one of soft, hard, uniform"),
        ({"temperature": 0.0}, "finite number above 0"),
        ({"images": IMAGES[:0]}, "no target images"),
        ({"images": IMAGES * float("nan")}, "not finite: look at its weights and at how"),
    ],
)
def test_what_gives_no_conditions_is_refused(arguments, message):
    given_ = {"images": IMAGES, "classes": 4, **arguments}
    with pytest.raises(InputError, match=message):
        conditions(Classifier(), given_.pop("images"), given_.pop("classes"), **given_)
    with pytest.raises(InputError, match="no images without labels"):
        ImagePool(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), seed=0)
