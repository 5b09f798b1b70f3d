import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft.data import ImageSet, scan_folder
from regraft.data.coreset import coreset, herding, k_center
from regraft.errors import InputError

METHODS = ("random", "herding", "k_center")


def images(counts=(12, 7, 9), seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    shape = (len(labels), 1, 4, 4)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, labels, len(counts))


def vectors(seed, n, d=3, whole=False):
    generator = torch.Generator().manual_seed(seed)
    if whole:  # few values, so that many vectors are equal
        return torch.randint(0, 2, (n, d), generator=generator).double()
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def gap_to_mean(x, rows):
    return (x.mean(0) - x[rows].mean(0)).norm().item()


def gap_to_chosen(x, i, chosen):
    return min((x[i] - x[j]).norm().item() for j in chosen)


@given(st.integers(0, 10**6), st.integers(1, 15), st.booleans(), st.data())
def test_herding_is_the_greedy_choice(seed, n, whole, data):
    k = data.draw(st.integers(1, n))
    x = vectors(seed, n, whole=whole)
    chosen = herding(x, k).tolist()
    assert len(set(chosen)) == k
    for t, taken in enumerate(chosen):
        before = chosen[:t]
        left = set(range(n)) - set(before)
        least = min(gap_to_mean(x, [*before, i]) for i in left)
        assert gap_to_mean(x, [*before, taken]) == pytest.approx(least, abs=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 15), st.booleans(), st.data())
def test_k_center_is_the_greedy_choice(seed, n, whole, data):
    k = data.draw(st.integers(1, n))
    x = vectors(seed, n, whole=whole)
    chosen = k_center(x, k).tolist()
    assert len(set(chosen)) == k
    to_mean = (x - x.mean(0)).norm(dim=1)
    assert to_mean[chosen[0]].item() == pytest.approx(to_mean.min().item(), abs=1e-9)
    for t in range(1, k):
        before = chosen[:t]
        left = set(range(n)) - set(before)
        farthest = max(gap_to_chosen(x, i, before) for i in left)
        assert gap_to_chosen(x, chosen[t], before) == pytest.approx(farthest, abs=1e-9)


def test_of_equal_vectors_the_first_is_taken():
    x = torch.tensor([[0.0], [2.0], [0.0], [2.0]])
    assert herding(x, 4).tolist() == [0, 1, 2, 3]
    assert k_center(x, 4).tolist() == [0, 1, 2, 3]


def test_herding_keeps_the_mean_better_than_chance():
    x = vectors(1, 400, d=10)
    generator = torch.Generator().manual_seed(2)
    gap = (x[herding(x, 10)].mean(0) - x.mean(0)).norm()
    random = [
        (x[torch.randperm(400, generator=generator)[:10]].mean(0) - x.mean(0)).norm()
        for _ in range(50)
    ]
    assert gap < min(random) / 2


@pytest.mark.parametrize("method", METHODS)
def test_every_class_gives_its_share_and_a_larger_choice_holds_the_smaller(method):
    source = images()
    chosen = [coreset(source, per_class=k, method=method, seed=3) for k in (1, 3, 7)]
    for k, indices in zip((1, 3, 7), chosen, strict=True):
        assert indices.dtype == torch.int64
        assert torch.equal(indices, indices.unique())
        assert torch.bincount(source.labels[indices]).tolist() == [k] * 3
    assert set(chosen[0].tolist()) < set(chosen[1].tolist()) < set(chosen[2].tolist())


@pytest.mark.parametrize("method", ["herding", "k_center"])
def test_the_order_of_the_images_does_not_matter(method):
    source = images()
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(5))
    found = coreset(source, per_class=3, method=method, seed=1)
    other = coreset(source.subset(order), per_class=3, method=method, seed=2)
    assert sorted(order[other].tolist()) == found.tolist()


def test_random_choices_belong_to_the_seed():
    source = images()
    first, again, other = (coreset(source, per_class=3, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_features_are_where_it_is_measured():
    source = images()
    found = coreset(source, per_class=2, method="herding", features=lambda x: x.flatten(1)[:, :1])
    for k in range(3):
        rows = (source.labels == k).nonzero().flatten()
        first = source.images[rows].flatten(1)[:, :1] * 1.0
        assert set(rows[herding(first, 2)].tolist()) <= set(found.tolist())
    same = coreset(source, per_class=2, method="herding", features=lambda x: x.flatten(1) / 255)
    assert torch.equal(same, coreset(source, per_class=2, method="herding"))


def test_files_are_chosen_from_as_images_are(make_images, tmp_path):
    for name in ("ant", "bee"):
        make_images(tmp_path / name, 5)
    files = scan_folder(tmp_path, image_size=8).train
    decoded = ImageSet(files.decoded(), files.labels, 2)
    for method in METHODS:
        assert torch.equal(
            coreset(files, per_class=2, method=method), coreset(decoded, per_class=2, method=method)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "best"}, "method='best': expected one of random, herding, k_center"),
        ({"per_class": 0}, "at least one image of each class"),
        ({"per_class": 8}, r"class 1 has 7 image\(s\), 8 were asked"),
        ({"features": lambda x: x}, r"features returned shape .* expected \[12, d\]"),
        ({"features": lambda x: x.flatten(1) / 0.0}, "not finite"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        coreset(images(), **{"per_class": 2, "method": "herding", **change})


@pytest.mark.parametrize("factor", [1, 2])
def test_a_class_without_images_is_refused(factor):
    source = images((3, 4))
    with pytest.raises(InputError, match=f"class {3 - factor} of 3 has no images"):
        coreset(ImageSet(source.images, source.labels * factor, 3), per_class=1)
