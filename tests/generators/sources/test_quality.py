import pytest
import torch

from regraft.data import ImageSet
from regraft.errors import InputError
from regraft.generators.sources import ImageSource, Source, measure
from regraft.generators.sources.quality import within_class

N = 90


def three(noise=40, n=N, seed=0):
    """Three classes: a bright third of the image, and noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(0, noise + 1, (n, 1, 9, 9), generator=g)
    for c in range(3):
        images[labels == c, :, 3 * c : 3 * c + 3] += 100
    return ImageSet(images.to(torch.uint8), labels, 3)


class Collapsed(Source):
    """One image a class, whatever the latent is."""

    classes, latent_shape, image_shape = 3, (2,), (1, 9, 9)

    def generate(self, latents, condition):
        return (three(noise=1).images[:3].float() / 255)[condition]

    def digest(self):
        return "collapsed"


def test_a_collapsed_generator_with_full_agreement_is_called_useless():
    q = measure(Collapsed(), three(), samples=60)
    assert q.agreement == 100
    assert q.collapsed
    assert not q.useful
    assert q.verdict.startswith("Useless: it is collapsed")
    assert "so 100% agreement says nothing" in q.verdict


def test_real_images_are_worth_using():
    q = measure(ImageSource(three(seed=1)), three(n=180), samples=90)
    assert q.useful
    assert q.verdict.startswith("Worth using")
    assert q.spread == pytest.approx(1, abs=0.1)
    assert q.cas > 95
    assert q.real is not None
    assert q.real > 95


def test_a_source_that_was_made_from_the_images_is_not_told_from_them():
    q = measure(ImageSource(three(n=180)), three(n=180), samples=200)
    assert q.copied > 0.5 * q.tested
    assert not q.useful
    assert q.verdict.startswith(
        f"Not to be told from these data: {q.copied} of the {q.tested} real"
    )
    # One that happens to be the same says nothing.
    assert measure(ImageSource(three(seed=1)), three(n=180), samples=90).copied == 0


def test_labels_that_mean_nothing_make_it_doubtful():
    images = three(n=180, seed=1)
    mixed = ImageSet(images.images, images.labels.roll(1), 3)
    q = measure(ImageSource(mixed), three(n=180), samples=90)
    assert not q.useful
    assert not q.collapsed
    assert q.verdict.startswith("Doubtful")
    assert q.agreement < 20


def test_the_spread_is_the_mean_distance_of_pairs():
    images = three(n=12)
    x = images.images.flatten(1).double() / 127.5
    for c in range(3):
        rows = x[images.labels == c]
        pairs = [(rows[i] - rows[j]).norm() for i in range(4) for j in range(i)]
        assert float(within_class(images, 0)[c]) == pytest.approx(float(sum(pairs) / 6))


@pytest.mark.parametrize(
    ("real", "message"),
    [
        (
            ImageSet(torch.zeros(30, 1, 8, 8).byte(), torch.arange(30) % 3, 3),
            "of 1x9x9 and the data are 1x8x8",
        ),
        (
            ImageSet(torch.zeros(30, 1, 9, 9).byte(), torch.arange(30) % 5, 5),
            "has 3 classes and the data have 5",
        ),
        (three(n=9), "six real images of each at least"),
    ],
)
def test_data_that_do_not_fit_are_refused(real, message):
    with pytest.raises(InputError, match=message):
        measure(Collapsed(), real, samples=30)
