import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.config import Augmentation
from regraft.data import Draws, augment, draw
from regraft.errors import InputError

KINDS: list[Augmentation] = ["none", "flip", "crop", "crop-flip", "resized-crop-flip"]


def batch(n, size=8, channels=2):
    generator = torch.Generator().manual_seed(size)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def crop_reference(image, top, left, flip):
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    cut = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
    return cut.flip(2) if flip else cut


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_an_image_fares_alike_in_every_batch(kind, n, cut, seed):
    x, draws = batch(n), draw(kind, n, image_size=8, seed=seed, epoch=3)
    whole = augment(x, draws)
    rows = torch.arange(n).split(cut)
    assert torch.equal(whole, torch.cat([augment(x[r], draws[r]) for r in rows]))


@given(st.integers(1, 12), st.integers(0, 100))
@settings(deadline=None)
def test_crop_agrees_with_cutting_each_image(n, seed):
    x, draws = batch(n), draw("crop-flip", n, image_size=8, seed=seed, epoch=0)
    assert draws.corner is not None
    assert draws.flip is not None
    expected = [
        crop_reference(image, int(top), int(left), bool(flip))
        for image, (top, left), flip in zip(x, draws.corner, draws.flip, strict=True)
    ]
    assert torch.equal(augment(x, draws), torch.stack(expected))


@given(st.integers(1, 8), st.integers(0, 100))
@settings(deadline=None)
def test_resized_crop_agrees_with_torchvision(n, seed):
    tv = pytest.importorskip("torchvision.transforms.v2.functional")
    x, draws = batch(n, size=32), draw("resized-crop-flip", n, image_size=32, seed=seed, epoch=0)
    assert draws.box is not None
    assert draws.flip is not None
    padded = torch.nn.functional.pad(x.float(), (4, 4, 4, 4))
    for i, (top, left, height, width) in enumerate(draws.box.int().tolist()):
        one = tv.resized_crop(padded[i], top, left, height, width, [32, 32], antialias=False)
        if bool(draws.flip[i]):
            one = one.flip(2)
        torch.testing.assert_close(augment(x, draws)[i], one, atol=2e-2, rtol=0)


def test_boxes_follow_the_law():
    box = draw("resized-crop-flip", 20_000, image_size=32, seed=1, epoch=0).box
    assert box is not None
    top, left, height, width = box.unbind(1)
    assert bool(((top >= 0) & (top + height <= 40) & (left >= 0) & (left + width <= 40)).all())
    area, ratio = height * width / 40**2, width / height
    # Sides are whole pixels: the bounds hold up to half a pixel of each.
    assert float(area.min()) > 0.07
    assert 0.70 < float(ratio.min()) < 0.80
    assert 1.28 < float(ratio.max()) < 1.43
    # Uniform on (.08, 1), less what does not fit at the upper end.
    assert 0.48 < float(area.mean()) < 0.54
    assert abs(float(ratio.log().mean())) < 0.01


def test_corners_and_flips_are_uniform():
    draws = draw("crop-flip", 90_000, image_size=32, seed=1, epoch=0)
    assert draws.corner is not None
    assert draws.flip is not None
    for side in draws.corner.unbind(1):
        counts = torch.bincount(side, minlength=9)
        assert counts.shape == (9,)
        assert int((counts - 10_000).abs().max()) < 500
    assert abs(float(draws.flip.float().mean()) - 0.5) < 0.01


def test_epochs_and_seeds_differ_and_repeat():
    def corners(seed, epoch):
        return draw("crop", 50, image_size=8, seed=seed, epoch=epoch).corner

    assert torch.equal(corners(1, 2), corners(1, 2))
    assert not torch.equal(corners(1, 2), corners(1, 3))
    assert not torch.equal(corners(1, 2), corners(2, 2))


def test_no_augmentation_returns_the_images():
    x = batch(3)
    assert augment(x, draw("none", 3, image_size=8, seed=1, epoch=0)) is x


def test_flip_mirrors_left_and_right():
    x = batch(2)
    out = augment(x, Draws(flip=torch.tensor([True, False])))
    assert torch.equal(out, torch.stack([x[0].flip(2), x[1]]))


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="augment='spin': expected one of none, flip"):
        draw("spin", 1, image_size=8, seed=1, epoch=0)  # type: ignore[arg-type]


@pytest.mark.slow
def test_crop_and_flip_of_a_batch_take_under_two_milliseconds():
    x = batch(128, size=32, channels=3)
    draws = draw("crop-flip", 128, image_size=32, seed=1, epoch=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(50):
            start = time.perf_counter()
            augment(x, draws)
            seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds) < 2e-3
