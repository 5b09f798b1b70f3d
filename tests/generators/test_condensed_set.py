import json

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from regraft.data import ImageSet, TensorLoader
from regraft.errors import InputError
from regraft.files import write_tensors
from regraft.generators import CondensedSet
from regraft.protocols import BatchSource

MEAN, STD = (0.3, 0.5), (0.2, 0.1)


def condensed(images=None, **more):
    if images is None:
        images = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    options = {
        "labels": torch.tensor([0, 0, 1, 1, 2, 2]),
        "classes": ("ant", "bee", "cat"),
        "mean": MEAN,
        "std": STD,
        "method": "dc",
        "about": {"seed": 3, "settings": {"lr": 0.1}},
        **more,
    }
    return CondensedSet(images, **options)


def test_a_file_gives_back_every_bit_also_outside_zero_and_one(tmp_path):
    first = condensed()
    assert first.images.min() < 0
    assert first.images.max() > 1
    size = first.save(tmp_path / "condensed.safetensors")
    assert size == (tmp_path / "condensed.safetensors").stat().st_size
    for place in (tmp_path / "condensed.safetensors", tmp_path):
        again = CondensedSet.load(place)
        assert torch.equal(again.images, first.images)
        assert torch.equal(again.labels, first.labels)
        for name in ("classes", "mean", "std", "method", "about"):
            assert getattr(again, name) == getattr(first, name), name
    assert (again.per_class, again.num_classes, again.channels, again.image_size) == (2, 3, 2, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["condensed.safetensors"]


def test_a_changed_pixel_or_label_is_found(tmp_path):
    path = tmp_path / "condensed.safetensors"
    condensed().save(path)
    data = path.read_bytes()
    for place in (len(data) - 1, len(data) - 60, len(data) - 400):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(InputError, match=r"is not as Regraft wrote it|damaged"):
            CondensedSet.load(path)
    for cut in (0, 5, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(InputError, match="damaged"):
            CondensedSet.load(path)


def header_of(path):
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["regraft"]), tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "ticket"}, "is no condensed set"),
        ({"schema": 99}, "has schema 99, this version reads up to 1: update"),
        ({"schema": "new"}, "damaged"),
        ({"classes": 3}, "damaged"),
        ({"classes": ["ant"]}, "labels from 0 to 2: expected 0 to 0"),
        ({"std": [0.2, 0]}, "std above 0"),
        ({"about": None}, "damaged"),
    ],
)
def test_a_header_that_cannot_be_is_refused(tmp_path, change, message):
    path = tmp_path / "condensed.safetensors"
    condensed().save(path)
    header, tensors = header_of(path)
    write_tensors(path, tensors, {"regraft": json.dumps({**header, **change})})
    with pytest.raises(InputError, match=message):
        CondensedSet.load(path)


def test_other_files_and_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        CondensedSet.load(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="is no condensed set"):
        CondensedSet.load(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="give text, finite numbers"):
        condensed(about={"loss": float("nan")}).save(tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(6, 2, 4)}, r"images of shape \[6, 2, 4\]"),
        ({"images": torch.zeros(6, 2, 4, 4).double()}, "expected float32"),
        ({"images": torch.full((6, 2, 4, 4), float("inf"))}, "not finite"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"expected int64 \[6\]"),
        ({"labels": torch.tensor([0, 0, 0, 1, 2, 2])}, "classes have 1 to 3 images"),
        ({"labels": torch.tensor([0, 0, 1, 1, 3, 3])}, "labels from 0 to 3"),
        ({"mean": (0.1,)}, r"one number for each of the 2 channel\(s\)"),
    ],
)
def test_a_set_that_cannot_be_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        condensed(**change)


def test_batches_are_those_of_real_images():
    levels = torch.arange(6 * 2 * 16).view(6, 2, 4, 4) * 7 % 256
    labels = condensed().labels
    real = ImageSet(levels.to(torch.uint8), labels, 3)
    options = {"batch_size": 4, "seed": 5, "augment": "crop-flip", "shuffle": True}
    expected = TensorLoader(real, mean=MEAN, std=STD, **options)
    found = condensed(levels / 255).loader(**options)
    assert isinstance(found, BatchSource)
    assert len(found) == len(expected) == 2
    for epoch in range(3):
        for mine, theirs in zip(found.batches(epoch), expected.batches(epoch), strict=True):
            torch.testing.assert_close(mine[0], theirs[0], rtol=1e-6, atol=1e-6)
            assert torch.equal(mine[1], theirs[1])
            assert mine[2] == theirs[2]
    first, second = found.batches(1)
    assert torch.equal(next(found.batches(1, start=1))[0], second[0])
    shares = [next(found.batches(1, rank=r, world=2))[0] for r in range(2)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), first[0])


def test_another_normalisation_may_be_asked_for():
    first = condensed()
    options = {"batch_size": 6, "seed": 0, "shuffle": False}
    plain = next(first.loader(mean=(0.0, 0.0), std=(1.0, 1.0), **options).batches(0))[0]
    torch.testing.assert_close(plain, first.images)
    own = next(first.loader(**options).batches(0))[0]
    mean, std = (torch.tensor(v).view(1, 2, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(own, (first.images - mean) / std, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="mean and std have 1 and 2 values"):
        first.loader(mean=(0.0,), **options)


def test_for_eyes_the_images_are_cut_to_grey_levels():
    first = condensed()
    rounded = first.to_image_set()
    assert (first.clipped() - rounded.images / 255).abs().max() <= 0.5 / 255 + 1e-6
    assert rounded.images[first.images < 0].max() == 0
    assert rounded.images[first.images > 1].min() == 255
