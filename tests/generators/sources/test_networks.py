import copy

import pytest
import torch
import torch.nn.functional as F

from regraft.data import ImageSet
from regraft.errors import InputError
from regraft.generators.sources import (
    GeneratorTraining,
    ImageSource,
    ModuleSource,
    RectifiedFlow,
    make_generator,
)
from regraft.streams import Counter


def two_bars():
    """Class 0 has an upright bar, class 1 a level one, anywhere."""
    g = torch.Generator().manual_seed(0)
    images = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)
    labels = torch.arange(200) % 2
    for i, at in enumerate(torch.randint(0, 8, (200,), generator=g).tolist()):
        images[i, 0, :, at] = 255 * (labels[i] == 0)
        images[i, 0, at] += (255 * (labels[i] == 1)).byte()
    return ImageSet(images, labels, 2)


def trained(kind, many, **options):
    torch.manual_seed(0)
    g = make_generator(kind, (1, 8, 8), 2, **options)
    work = GeneratorTraining(g, two_bars(), steps=many, batch_size=32, lr=3e-3, seed=0, decay=0.9)
    while not work.done:
        work.step()
    work.finish()
    return g, work


def upright(x):
    """How far an image is more alike along columns than along rows."""
    return x.var(2).sum((1, 2)) < x.var(3).sum((1, 2))


@pytest.mark.parametrize(
    ("kind", "many", "options"),
    [("vae", 150, {"latent": 4, "hidden": 64}), ("flow", 300, {"width": 16, "steps": 4})],
)
def test_a_small_generator_learns_what_it_is_asked_for(kind, many, options):
    g, work = trained(kind, many, **options)
    s = ModuleSource(g)
    assert s.classes == 2
    assert s.soft_conditions
    assert s.latent_gradients
    assert s.deterministic
    y = torch.arange(100) % 2
    made = s.sample(100, labels=y, generator=Counter(0))
    assert (upright(made) == (y == 0)).float().mean() > 0.85
    assert work.newest["loss"] > 0


def test_training_goes_on_to_the_same_bits():
    def work():
        torch.manual_seed(0)
        g = make_generator("vae", (1, 8, 8), 2, latent=2, hidden=16)
        return GeneratorTraining(g, two_bars(), steps=6, batch_size=8, seed=1)

    whole, half, rest = work(), work(), work()
    while not whole.done:
        whole.step()
    for _ in range(4):
        half.step()
    rest.load_state_dict(copy.deepcopy(half.state_dict()))
    while not rest.done:
        rest.step()
    whole.finish()
    rest.finish()
    for a, b in zip(
        whole.generator.state_dict().values(), rest.generator.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)


def test_the_evidence_bound_is_its_definition():
    torch.manual_seed(0)
    g = make_generator("vae", (1, 4, 4), 3, latent=2, hidden=8)
    x, noise = torch.rand(5, 1, 4, 4), torch.randn(5, 2)
    q = F.one_hot(torch.arange(5) % 3, 3).float()
    mean, log_var = g.moments(g.encoder(torch.cat([x.flatten(1), q], 1))).chunk(2, 1)
    rebuilt = g.decode(mean + noise * (0.5 * log_var).exp(), q).flatten(1)
    likely = (x.flatten(1) * rebuilt.log() + (1 - x.flatten(1)) * (1 - rebuilt).log()).sum(1)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, (log_var / 2).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(g.loss(x, q, noise), (kl.sum(1) - likely).mean())


def test_the_flow_takes_euler_steps():
    torch.manual_seed(0)
    g = RectifiedFlow((1, 8, 8), 2, width=8, steps=3)
    torch.nn.init.normal_(g.out.weight, std=0.1)
    z, q = torch.randn(4, 1, 8, 8), torch.eye(2)[torch.tensor([0, 1, 0, 1])]
    x = z
    for i in range(3):
        x = x + g.velocity(x, torch.full((4,), i / 3), q) / 3
    torch.testing.assert_close(g.decode(z, q), ((x + 1) / 2).clamp(0, 1))


def test_real_images_are_a_source_of_themselves():
    images = two_bars()
    s = ImageSource(images)
    y = torch.tensor([0, 1, 1, 0, 1])
    made = s.sample(5, labels=y, generator=Counter(4))
    for x, label in zip(made, y, strict=True):
        matches = (images.images.float() / 255 - x).abs().amax((1, 2, 3)) == 0
        assert matches[images.labels == label].any()
    first = s.sample(2, labels=torch.tensor([0, 0]), latents=torch.tensor([[0.0], [1.0]]))
    zeros = images.images[images.labels == 0].float() / 255
    assert torch.equal(first, zeros[[0, -1]])
    assert not s.soft_conditions
    assert s.digest() == ImageSource(two_bars()).digest()
    with pytest.raises(InputError, match="class 1 of 3 has no images"):
        ImageSource(ImageSet(images.images[:1], torch.tensor([0]), 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_generator("gan", (1, 8, 8), 2), "expected one of vae, flow"),
        (lambda: make_generator("vae", (1, 8, 8), 2, depth=3), "takes no such option"),
        (lambda: make_generator("flow", (1, 10, 8), 2), "multiples of 4"),
        (
            lambda: GeneratorTraining(make_generator("vae", (1, 8, 8), 3), two_bars(), steps=1),
            "2 classes of images of",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
