import pytest
import torch

from regraft.data import ImageSet, TensorLoader, scan_folder
from regraft.errors import InputError
from regraft.generators.real_images import RealImages

MEAN, STD = (0.3,), (0.2,)


def image_set(counts=(10, 7, 3)):
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    # Every image is told from every other by its first pixel.
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 2, 2)
    return ImageSet(pixels, labels, len(counts))


def real(source=None, **more):
    options = {"mean": MEAN, "std": STD, "classes": None, "seed": 3, **more}
    return RealImages(image_set() if source is None else source, **options)


def rows(batch):
    return [round(v) for v in ((batch[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255).tolist()]


def test_batches_of_a_class_go_through_it_without_repeating():
    source, found = image_set(), real()
    for label, count in enumerate((10, 7, 3)):
        own = (source.labels == label).nonzero().flatten().tolist()
        for a_pass in range(3):
            n = max(count // 3, 1)
            seen = [r for i in range(n) for r in rows(found.batch(label, 3, a_pass * n + i))]
            assert len(set(seen)) == len(seen) == min(3 * n, count)
            assert set(seen) <= set(own)
    orders = {tuple(rows(found.batch(0, 3, i))) for i in range(30)}
    assert len(orders) > 25
    assert {r for order in orders for r in order} == set(
        (source.labels == 0).nonzero().flatten().tolist()
    )


def test_a_batch_does_not_depend_on_what_was_drawn_before():
    found, other = real(), real()
    forward = [rows(found.batch(0, 3, i)) for i in range(9)]
    assert [rows(other.batch(0, 3, i)) for i in reversed(range(9))] == forward[::-1]
    assert [rows(real(seed=4).batch(0, 3, i)) for i in range(9)] != forward


def test_a_small_class_gives_all_it_has():
    assert sorted(rows(real().batch(2, 5, 7))) == sorted(
        (image_set().labels == 2).nonzero().flatten().tolist()
    )


def test_the_order_of_the_classes_does_not_matter():
    source, order = image_set(), torch.tensor([1, 2, 0])
    other = ImageSet(source.images, order[source.labels], 3)
    found = real(source, classes=("ant", "bee", "cat"))
    moved = real(other, classes=("cat", "ant", "bee"))
    for label in range(3):
        assert torch.equal(found.batch(label, 3, 4), moved.batch(int(order[label]), 3, 4))


def test_images_are_normalised_as_the_loaders_do():
    source = image_set()
    loader = TensorLoader(
        source, batch_size=30, mean=MEAN, std=STD, shuffle=False, augment="none", seed=0
    )
    expected = next(loader.batches(0))[0]
    assert torch.equal(real().at(torch.arange(len(source))), expected)
    read = real(loader)
    assert torch.equal(read.at(torch.arange(len(source))), expected)
    assert torch.equal(read.labels, source.labels)
    assert torch.equal(read.first(2), real().first(2))


def test_files_are_read_as_they_are_needed(make_images, tmp_path):
    for name in ("ant", "bee"):
        make_images(tmp_path / name, 4)
    files = scan_folder(tmp_path, image_size=8).train
    whole = ImageSet(files.decoded(), files.labels, 2)
    options = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    found, expected = real(files, **options), real(whole, **options)
    assert torch.equal(found.batch(1, 3, 2), expected.batch(1, 3, 2))
    assert found.digest() == real(files, **options).digest()
    assert found.digest() != real(files.subset(torch.arange(1, 8)), **options).digest()


def test_the_digest_sees_images_and_labels():
    source = image_set()
    pixels, labels = source.images.clone(), source.labels.clone()
    pixels[3, 0, 0, 0] += 1
    labels[[0, 1]] = labels[[1, 0]] if labels[0] != labels[1] else (labels[[0, 1]] + 1) % 3
    digests = {
        real(s).digest()
        for s in (source, ImageSet(pixels, source.labels, 3), ImageSet(source.images, labels, 3))
    }
    assert len(digests) == 3
    assert real().digest() in digests


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("photos", {}, "the images to condense are a str: expected an ImageSet"),
        (image_set((3, 0, 2)), {}, "class '1' has no images"),
        (None, {"classes": ("ant", "bee")}, r"classes has 2 name\(s\).* expected 3"),
        (None, {"classes": ("ant", "ant", "bee")}, "2 of them different: expected 3"),
        (None, {"mean": (0.1, 0.2)}, r"expected one for each of the 1 channel\(s\)"),
        (None, {"std": (0.0,)}, "expected numbers above 0"),
    ],
)
def test_what_cannot_be_is_refused(source, change, message):
    with pytest.raises(InputError, match=message):
        real(source, **change)
