import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from regraft.config import DataConfig
from regraft.data import channel_moments, load, rotate
from regraft.errors import InputError

DIGITS = DataConfig(name="digits")


def test_a_quarter_turn_moves_the_first_row_to_the_first_column_from_below():
    image = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    assert rotate(image, 90)[0, 0].tolist() == [[2, 5, 8], [1, 4, 7], [0, 3, 6]]
    assert rotate(image, -270).equal(rotate(image, 90))
    assert rotate(image, 360).equal(image)


def disc(side):
    at = torch.arange(side) - (side - 1) / 2
    return ((at[:, None] ** 2 + at**2).sqrt() < side / 3).to(torch.uint8)[None, None] * 200


@given(st.floats(0.5, 359.5))
def test_a_disc_stays_where_it_is(degrees):
    image = disc(32)
    assert (rotate(image, degrees).float() - image.float()).abs().mean() < 8


@given(st.floats(1, 89), st.integers(0, 3))
@example(73.59649367183503, 2)
def test_angles_add_up_over_quarter_turns_and_go_the_same_way(degrees, quarters):
    image = torch.zeros(1, 1, 33, 33, dtype=torch.uint8)
    image[0, 0, 15:18, 24:28] = 255  # to the right of the centre
    turned = rotate(image, degrees)
    # The sum of two angles is rounded, so a pixel may fall to the next of 256 levels.
    both = rotate(image, degrees + 90 * quarters).int()
    assert (both - rotate(turned, 90 * quarters).int()).abs().max() <= 1
    y, x = ((turned[0, 0].float() * at).sum() / turned.sum() for at in places(33))
    angle = torch.atan2(-(y - 16), x - 16)  # counterclockwise, y points down
    assert torch.rad2deg(angle).item() == pytest.approx(degrees, abs=1)


def places(side):
    at = torch.arange(side).float()
    return at[:, None].expand(side, side), at.expand(side, side)


def test_turned_digits_keep_labels_and_take_moments_anew():
    plain, turned = load(DIGITS), load(DataConfig(name="digits", rotate=45.0))
    for part in ("train", "validation", "test"):
        a, b = getattr(plain, part), getattr(turned, part)
        assert a.labels.equal(b.labels)
        assert rotate(a.images, 45.0).equal(b.images)
    assert (turned.mean, turned.std) == channel_moments(turned.train.images)
    assert turned.mean != plain.mean


def test_classes_that_are_left_out_leave_labels_and_names_as_they_are():
    whole, half = load(DIGITS), load(DataConfig(name="digits", only_classes=(7, 5)))
    assert half.classes == whole.classes
    assert half.train.num_classes == 10
    for part in ("train", "validation", "test"):
        a, b = getattr(whole, part), getattr(half, part)
        kept = (a.labels == 5) | (a.labels == 7)
        assert b.labels.equal(a.labels[kept])
        assert b.images.equal(a.images[kept])


def test_pixels_can_be_left_in_the_unit_interval():
    found = load(DataConfig(name="digits", normalize="none"))
    assert (found.mean, found.std) == ((0.0,), (1.0,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotate": float("nan")}, "--rotate nan: expected a finite number"),
        ({"only_classes": (3, 10)}, "only_classes holds 10: digits has the classes 0 to 9"),
        ({"normalize": "imagenet"}, "is for 3 channels and digits has 1: take 'own' or 'none'"),
        ({"normalize": "zero"}, "normalize='zero': expected 'own', 'none' or 'imagenet'"),
    ],
)
def test_what_cannot_be_done_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        load(DataConfig(name="digits", **options))


def test_images_that_are_not_square_are_refused():
    with pytest.raises(InputError, match=r"images of \[2, 3\] pixels: only square ones"):
        rotate(torch.zeros(1, 1, 2, 3, dtype=torch.uint8), 90)
