import os

import numpy as np
import pytest
import torch

from regraft.errors import InputError
from regraft.fewshot import Episodes, EpisodeSampler, Sinusoids, omniglot, one_shot_runs
from regraft.fewshot.episodes import _draw


def images_of(counts, size=4):
    """Images whose every pixel is their own number, so that each can be known again."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    numbers = torch.arange(len(labels), dtype=torch.float32)
    return numbers[:, None, None, None].expand(-1, 1, size, size).clone(), labels


def sampler(counts=(5, 9, 6, 12, 7), **how):
    options = {"ways": 3, "shots": 2, "queries": 3, "seed": 1, **how}
    return EpisodeSampler(*images_of(counts), **options)


def test_an_episode_depends_on_seed_and_number_alone():
    one, two = sampler(), sampler()
    whole = one.batch(0, 6)
    alone = two.batch(4, 1)
    assert torch.equal(whole.support_x[4], alone.support_x[0])
    assert torch.equal(whole.query_x[4], alone.query_x[0])
    assert not torch.equal(whole.support_x[0], whole.support_x[1])
    assert not torch.equal(whole.support_x, sampler(seed=2).batch(0, 6).support_x)


def test_images_are_of_their_classes_and_none_comes_twice():
    draws = sampler()
    episodes = draws.batch(0, 50)
    images = draws.labels
    for t in range(50):
        numbers = torch.cat([episodes.support_x[t], episodes.query_x[t]])[:, 0, 0, 0].long()
        labels = torch.cat([episodes.support_y[t], episodes.query_y[t]])
        assert len(set(numbers.tolist())) == 15
        assert torch.equal(images[numbers], episodes.classes[t][labels])
        assert torch.bincount(episodes.support_y[t]).tolist() == [2] * 3


def test_every_choice_is_equally_likely_in_every_place():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, size=(40_000, 6), dtype=np.uint64)
    drawn = _draw(words, np.full(40_000, 5), 3)
    for place in range(3):
        share = np.bincount(drawn[:, place], minlength=5) / 40_000
        assert np.abs(share - 0.2).max() < 0.01
    pairs = np.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=25).reshape(5, 5) / 40_000
    assert (np.diag(pairs) == 0).all()
    assert np.abs(pairs[~np.eye(5, dtype=bool)] - 0.05).max() < 0.006


def test_rotations_are_classes_of_their_own():
    images = torch.arange(2 * 6 * 9, dtype=torch.float32).reshape(12, 1, 3, 3)
    labels = torch.tensor([0, 1]).repeat_interleave(6)
    draws = EpisodeSampler(images, labels, ways=4, shots=1, queries=1, seed=1, rotations=True)
    assert draws.num_classes == 8
    episodes = draws.batch(0, 40)
    for t in range(40):
        assert len(set(episodes.classes[t].tolist())) == 4
        for image, kind in zip(episodes.support_x[t], episodes.classes[t], strict=True):
            turned = torch.rot90(images[labels == kind // 4], int(kind % 4), (-2, -1))
            assert any(torch.equal(image, other) for other in turned)


def test_whole_numbers_are_scaled_and_normalised():
    images, labels = images_of((4, 4, 4))
    pixels = EpisodeSampler(
        images.to(torch.uint8), labels, ways=2, shots=1, queries=1, seed=1, mean=(0.1,), std=(0.5,)
    )
    floats = EpisodeSampler(images, labels, ways=2, shots=1, queries=1, seed=1)
    a, b = pixels.batch(0, 3), floats.batch(0, 3)
    torch.testing.assert_close(a.support_x, (b.support_x / 255 - 0.1) / 0.5)


def test_any_data_set_of_pairs_is_taken():
    images, labels = images_of((4, 4, 4))
    pairs = [(x.numpy()[0], int(y)) for x, y in zip(images, labels, strict=True)]
    how = {"ways": 2, "shots": 1, "queries": 1, "seed": 1}
    a = EpisodeSampler.of(pairs, **how).batch(0, 3)
    assert torch.equal(
        a.support_x, EpisodeSampler.of((images, labels), **how).batch(0, 3).support_x
    )


def test_fewer_classes_than_ways_are_refused():
    with pytest.raises(InputError, match="5 classes and an episode takes 6"):
        sampler(ways=6)
    sampler(ways=6, rotations=True)


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(InputError, match=r"class 'cat' has 4 images and an episode takes 2 .* 3"):
        sampler(counts=(6, 4, 9), names=("dog", "cat", "cow"))


def test_queries_of_strange_classes_are_refused():
    x, y = torch.zeros(1, 2, 3), torch.tensor([[0, 1]])
    with pytest.raises(InputError, match="query set has the class 2"):
        Episodes(x, y, x, torch.tensor([[0, 2]]))


def test_sinusoids_are_what_they_say():
    tasks = Sinusoids(shots=3, queries=4, seed=2).batch(5, 50)
    assert tasks.support_x.shape == (50, 3, 1)
    assert tasks.query_y.shape == (50, 4, 1)
    x, y = (
        torch.cat([a, b], 1)[:, :, 0]
        for a, b in ((tasks.support_x, tasks.query_x), (tasks.support_y, tasks.query_y))
    )
    # y = a sin x + b cos x with a = A cos p, b = -A sin p
    basis = torch.stack([torch.sin(x), torch.cos(x)], -1).double()
    fit = torch.linalg.lstsq(basis, y[..., None].double()).solution
    torch.testing.assert_close((basis @ fit)[..., 0], y.double(), atol=1e-4, rtol=0)
    assert bool((fit[:, 1, 0] <= 1e-3).all())  # p in [0, pi]
    again = Sinusoids(shots=3, queries=4, seed=2).batch(7, 1)
    assert torch.equal(again.support_x[0], tasks.support_x[2])


@pytest.mark.data
@pytest.mark.skipif("REGRAFT_DATA" not in os.environ, reason="needs the benchmark data sets")
def test_the_official_runs_and_the_official_split():
    runs = one_shot_runs()
    assert runs.support_x.shape == (20, 20, 1, 28, 28)
    assert runs.query_x.shape == runs.support_x.shape
    assert all(sorted(y.tolist()) == list(range(20)) for y in runs.query_y)
    background, evaluation = omniglot("background"), omniglot("evaluation")
    assert (background.num_classes, evaluation.num_classes) == (964, 659)
    assert float(background.images.float().mean()) > 200  # paper is white
