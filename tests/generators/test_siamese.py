import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import InputError
from regraft.generators.siamese import TRANSFORMS, draw_kind, draw_values, transform


def images(n=4, side=8, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, side, side, dtype=torch.float64, generator=generator)


def values(n=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 4, generator=generator) * 2 - 1


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_equal_values_do_the_same_to_every_image(kind):
    row = values(1)
    both = torch.cat([images(), images(3, seed=5)])
    whole = transform(kind, both, row.expand(7, -1))
    parts = [transform(kind, part, row.expand(len(part), -1)) for part in both.split([4, 3])]
    torch.testing.assert_close(whole, torch.cat(parts))
    assert whole.shape == both.shape


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_the_pixels_gradient_is_the_slope(kind):
    x = images(2, side=5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: transform(kind, x, values(2)), x, fast_mode=True, raise_exception=True
    )


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("color", (0.0, 0.0, 0.0, 0.0)),
        ("flip", (-0.5, 0.0, 0.0, 0.0)),
        ("crop", (0.0, 0.0, 0.0, 0.0)),
        ("rotate", (0.0, 0.0, 0.0, 0.0)),
        ("scale", (-1 / 11, -1 / 11, 0.0, 0.0)),  # a factor of 1 within [1/1.2, 1.2]
    ],
)
def test_some_values_leave_the_images_as_they_are(kind, row):
    x = images()
    same = transform(kind, x, torch.tensor([row]).expand(4, -1))
    torch.testing.assert_close(same, x, rtol=1e-5, atol=1e-5)


def test_flip_mirrors_left_and_right():
    x = images(2)
    found = transform("flip", x, torch.tensor([[0.5, 0, 0, 0], [-0.5, 0, 0, 0]]))
    assert torch.equal(found[0], x[0].flip(2))
    assert torch.equal(found[1], x[1])


@given(st.floats(-0.999, 0.999), st.floats(-0.999, 0.999))
def test_crop_shifts_by_whole_pixels_and_fills_with_zero(down, across):
    x = images(1, side=16)
    found = transform("crop", x, torch.tensor([[down, across, 0, 0]]))[0]
    padded = torch.zeros(3, 20, 20, dtype=x.dtype)
    padded[:, 2:18, 2:18] = x[0]
    places = [padded[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)]
    assert any(torch.equal(found, place) for place in places)
    extremes = transform("crop", x, torch.tensor([[-0.999, 0.999, 0, 0]]))[0]
    assert torch.equal(extremes, padded[:, :16, 4:])


@given(st.floats(-0.999, 0.999), st.floats(-0.999, 0.999))
def test_cutout_blanks_a_square_of_half_the_side_or_what_of_it_is_inside(down, across):
    x = torch.ones(1, 1, 8, 8)
    found = transform("cutout", x, torch.tensor([[down, across, 0, 0]]))[0, 0]
    gone = found == 0
    rows, columns = gone.any(1).nonzero().flatten(), gone.any(0).nonzero().flatten()
    assert gone[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert gone.sum() == len(rows) * len(columns)
    for found, value in ((rows, down), (columns, across)):
        inside = 2 < (value + 1) * 4 < 6
        assert len(found) == 4 if inside else 2 <= len(found) <= 4


def test_rotate_turns_by_at_most_fifteen_degrees():
    side = 65
    line = torch.zeros(1, 1, side, side)
    line[..., side // 2, :] = 1
    found = transform("rotate", line, torch.tensor([[1.0, 0, 0, 0]]))[0, 0]
    at = 20  # columns from the centre
    height = found[:, side // 2 + at].argmax().item() - side // 2
    assert abs(height) == pytest.approx(at * math.tan(math.radians(15)), abs=1)


def test_color_keeps_the_order_of_its_steps():
    x = images(1)
    b, s, c = 0.3, -0.4, 0.6
    grey = (x + b / 2).mean(1, keepdim=True)
    expected = grey + (x + b / 2 - grey) * (s + 1)
    mean = expected.mean()
    expected = mean + (expected - mean) * ((c + 1) / 2 + 0.5)
    found = transform("color", x, torch.tensor([[b, s, c, 0]], dtype=torch.float64))
    torch.testing.assert_close(found, expected)


def test_draws_belong_to_the_seed_the_step_and_the_class():
    kinds = [draw_kind(TRANSFORMS, seed=1, name="a", event=e) for e in range(200)]
    assert set(kinds) == set(TRANSFORMS)
    assert kinds == [draw_kind(TRANSFORMS, seed=1, name="a", event=e) for e in range(200)]
    both = draw_values(("ant", "bee"), seed=1, event=3)
    assert torch.equal(draw_values(("bee", "ant"), seed=1, event=3), both.flip(0))
    assert not torch.equal(draw_values(("ant", "bee"), seed=1, event=4), both)
    assert not torch.equal(both[0], both[1])


def test_an_unknown_transform_is_refused():
    with pytest.raises(InputError, match="transforms holds 'blur': expected some of color, crop"):
        transform("blur", images(), values())
