import pytest
import torch
from foreign_generators import AddedLabels, ConvOneHot, Decoder, EmbeddedLabels, NoisyImages

from regraft.errors import InputError, RegraftError
from regraft.generators.sources import ModuleSource, draw_labels
from regraft.streams import Counter


def source(kind=EmbeddedLabels, **options):
    torch.manual_seed(0)
    return ModuleSource(kind(), **{"classes": 4, "latent": 6, **options})


def test_a_counter_makes_the_same_images_at_any_batch_size():
    one, other = Counter(7), Counter(7)
    g = source()
    whole = g.sample(300, generator=one)
    parts = torch.cat([g.sample(n, generator=other) for n in (1, 40, 216, 43)])
    torch.testing.assert_close(whole, parts)
    assert one.position == other.position == 300
    assert torch.equal(
        torch.cat([g.latents(n, Counter(7, position=p)) for n, p in ((299, 0), (1, 299))]),
        g.latents(300, Counter(7)),
    )


def test_drawn_labels_are_those_of_an_equal_counter_and_cover_the_classes():
    g = source()
    labels = draw_labels(Counter(3), 0, 200, 4)
    assert labels.unique().tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(
        g.sample(200, labels=labels, generator=Counter(3)), g.sample(200, generator=Counter(3))
    )


@pytest.mark.parametrize(
    ("kind", "call", "pixels", "shape"),
    [
        (EmbeddedLabels, "G(z [n, 6], y int64 [n])", "[-1,1]", (1, 8, 8)),
        (AddedLabels, "G(z [n, 6], y int64 [n])", "[0,1]", (1, 8, 8)),
        (Decoder, "decode(z [n, 6], onehot float [n, 4])", "[0,1]", (1, 8, 8)),
        (ConvOneHot, "G(z [n, 6, 1, 1], onehot float [n, 4])", "[-1,1]", (3, 8, 8)),
    ],
)
def test_one_batch_tells_how_a_generator_is_called(kind, call, pixels, shape):
    g = source(kind)
    assert g.notes[0] == f"called as {call}"
    assert g.notes[1].endswith(f"taken as {pixels}")
    assert g.image_shape == shape
    images = g.sample(10, generator=Counter(1))
    assert images.shape == (10, *shape)
    assert 0 <= images.min() < images.max() <= 1
    assert g.deterministic
    assert g.latent_gradients
    assert g.soft_conditions


@pytest.mark.parametrize("kind", [EmbeddedLabels, AddedLabels, Decoder, ConvOneHot])
def test_hard_is_soft_with_one_hot_and_mixed_is_between(kind):
    g, y = source(kind), torch.tensor([0, 1, 2, 3])
    hard = torch.nn.functional.one_hot(y, 4).float()
    z = g.latents(4, Counter(0))
    plain = g.sample(4, labels=y, latents=z)
    torch.testing.assert_close(g.sample(4, probabilities=hard, latents=z), plain)
    mixed = g.sample(4, probabilities=(hard + hard.roll(1, 1)) / 2, latents=z)
    assert (mixed - plain).abs().amax((1, 2, 3)).min() > 1e-3
    assert not g.fallbacks


def test_mixed_rows_are_the_linear_mixture_of_the_table():
    g = source(EmbeddedLabels)
    z, q = g.latents(5, Counter(0)), torch.full((5, 4), 0.25)
    mean = g.module.emb.weight.mean(0).expand(5, -1)
    expected = (g.module.net(torch.cat([z, mean], 1)).view(5, 1, 8, 8) + 1) / 2
    torch.testing.assert_close(g.sample(5, probabilities=q, latents=z), expected)


def test_without_mixed_labels_each_label_is_drawn_and_counted():
    g = source(EmbeddedLabels)
    g.soft_conditions = False
    q = torch.tensor([[0.7, 0.0, 0.3, 0.0]]).expand(400, -1)
    drawn = g.sample(400, probabilities=q, latents=torch.ones(400, 6), generator=Counter(5))
    by_class = g.sample(4, labels=torch.arange(4), latents=torch.ones(4, 6))
    made = (drawn[:, None] - by_class).abs().amax((2, 3, 4)).argmin(1)
    share = made.bincount(minlength=4) / 400
    torch.testing.assert_close(share, q[0], atol=0.07, rtol=0)
    assert list(g.fallbacks.values()) == [400]
    assert "drawn from its probabilities" in next(iter(g.fallbacks))


def test_gradients_reach_latents_and_probabilities_and_never_the_weights():
    g = source(Decoder)
    z = g.latents(3, Counter(0)).requires_grad_()
    q = torch.full((3, 4), 0.25, requires_grad=True)
    g.sample(3, latents=z, probabilities=q).sum().backward()
    assert z.grad.abs().sum() > 0
    assert q.grad.abs().sum() > 0
    assert all(p.grad is None for p in g.module.parameters())
    assert not g.sample(3, labels=torch.arange(3), latents=z.detach()).requires_grad


def test_latents_without_a_gradient_are_refused_when_one_is_needed():
    g = source(Decoder)
    g.latent_gradients = False
    with pytest.raises(InputError, match="passes no gradients to its latents: choose samples"):
        g.sample(2, latents=torch.zeros(2, 6, requires_grad=True), labels=torch.zeros(2).long())


def test_noise_of_its_own_is_seen_and_seeded():
    g = source(NoisyImages)
    assert not g.deterministic
    assert any("noise of its own" in note for note in g.notes)
    state = torch.random.get_rng_state()
    first, again = (g.sample(5, generator=Counter(2)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_digest_follows_weights_and_range():
    assert source().digest() == source().digest()
    other = source()
    other.module.emb.weight.data[0, 0] += 1
    assert other.digest() != source().digest()
    assert source(AddedLabels, pixels="[-1,1]").digest() != source(AddedLabels).digest()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 5}, "set the latent, the classes or the labels"),
        ({"labels": "onehot"}, "cannot be called with 64 latents"),
        ({"labels": "soft"}, "expected int or onehot"),
        ({"pixels": "[0,1]"}, r"which are not in \[0,1\]: set the range"),
        ({"pixels": "percent"}, "expected one of"),
        ({"image_shape": (3, 8, 8)}, "makes 64 numbers an image, which are no 3x8x8"),
        ({"method": "paint"}, "no method 'paint': expected forward"),
        ({"latent": None}, "does not say how long its latent is"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_option(options, message):
    with pytest.raises(InputError, match=message):
        source(**options)


def test_images_that_are_not_finite_are_refused():
    g = source()
    g.module.emb.weight.data[2] = float("nan")
    with pytest.raises(
        RegraftError, match="1 of 4 generated images hold numbers that are not finite"
    ):
        g.sample(4, labels=torch.arange(4), generator=Counter(0))
    with pytest.raises(InputError, match="not finite: look at its weights"):
        ModuleSource(g.module, classes=4, latent=6)


def test_images_beyond_their_range_are_refused():
    g = source(AddedLabels)
    g._high = 0.2
    with pytest.raises(RegraftError, match="set the range of its pixels"):
        g.sample(4, labels=torch.arange(4), generator=Counter(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": torch.tensor([0, 4])}, "this source has the classes 0 to 3"),
        ({"labels": torch.zeros(3).long()}, r"labels of shape \(3,\)"),
        ({"probabilities": torch.full((2, 5), 0.2)}, r"takes float \[2, 4\]"),
        ({"probabilities": torch.full((2, 4), 0.5)}, "that sum to 1"),
        ({"latents": torch.zeros(2, 5)}, r"latents of shape \(2, 5\): this source takes \(2, 6\)"),
        (
            {"labels": torch.zeros(2).long(), "probabilities": torch.full((2, 4), 0.25)},
            "exclude each other",
        ),
    ],
)
def test_wrong_conditions_and_latents_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        source().sample(2, generator=Counter(0), **arguments)
    with pytest.raises(InputError, match="generator is missing"):
        source().sample(2, labels=torch.zeros(2).long())


def test_a_torch_generator_works_and_moves_on():
    g, generator = source(), torch.Generator().manual_seed(0)
    first, second = (g.sample(3, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, g.sample(3, generator=torch.Generator().manual_seed(0)))
