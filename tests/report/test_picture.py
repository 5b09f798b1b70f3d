import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import InputError
from regraft.report.picture import contact_sheet, png


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(0, 10**6))
def test_a_png_holds_every_pixel(height, width, channels, seed):
    image = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(seed)
    shape = (height, width, channels)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    read = image.open(io.BytesIO(png(pixels)))
    read.load()
    assert read.mode == ("L" if channels == 1 else "RGB")
    assert read.size == (width, height)
    assert read.tobytes() == pixels.numpy().tobytes()
    assert png(pixels) == png(pixels.clone())


def test_images_stand_row_by_row_with_square_pixels():
    images = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 1, 30, 30).clone()
    images[4, 0, 0, 0] = 7.0
    sheet = contact_sheet(images, columns=3)
    assert sheet.shape == (2 * 62 + 2, 3 * 62 + 2, 1)
    for i in range(5):
        top, left = (2 + 62 * p for p in divmod(i, 3))
        tile = sheet[top : top + 60, left : left + 60, 0]
        assert (tile == round(i / 4 * 255)).all()
    empty = sheet[64:124, 2 + 2 * 62 :, 0]
    assert (empty == 128).all()
    assert (sheet[:2] == 128).all()


def test_colours_stay_and_other_channels_become_their_mean():
    images = torch.rand(2, 3, 60, 60)
    sheet = contact_sheet(images, columns=2)
    expected = (images[1].permute(1, 2, 0) * 255).round().to(torch.uint8)
    assert torch.equal(sheet[2:62, 64:124], expected)
    pairs = contact_sheet(images[:, :2], columns=2)
    assert torch.equal(pairs, contact_sheet(images[:, :2].mean(1, keepdim=True), columns=2))


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="expected at least one"):
        contact_sheet(torch.zeros(0, 1, 2, 2), columns=1)
    with pytest.raises(InputError, match="columns=0"):
        contact_sheet(torch.zeros(1, 1, 2, 2), columns=0)
    with pytest.raises(InputError, match=r"expected uint8 \[H, W, 1\]"):
        png(torch.zeros(2, 2, 4, dtype=torch.uint8))
