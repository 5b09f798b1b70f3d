from pathlib import Path

import pytest
import torch

from regraft.data import FileSet, ImageSet, Splits, channel_moments, with_channels
from regraft.errors import InputError

Image = pytest.importorskip("PIL.Image")


def splits(channels):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (6, channels, 5, 5), generator=generator, dtype=torch.uint8)
    images = ImageSet(x, torch.arange(6) % 2, 2)
    return Splits("toy", images, images, None, ("a", "b"), *channel_moments(x))


def test_colour_becomes_pillows_luma_and_grey_three_equal_channels():
    colour = splits(3)
    grey = with_channels(colour, 1)
    for before, after in zip(colour.train.images, grey.train.images, strict=True):
        wanted = Image.fromarray(before.permute(1, 2, 0).numpy()).convert("L")
        assert list(wanted.tobytes()) == after.flatten().tolist()
    assert (grey.mean, grey.std) == channel_moments(grey.train.images)
    back = with_channels(grey, 3)
    assert all(torch.equal(back.train.images[:, i], grey.train.images[:, 0]) for i in range(3))
    assert back.mean == grey.mean * 3
    assert back.test is None
    assert with_channels(grey, 1) is grey


def test_files_that_stay_where_they_are_are_made_grey_when_decoded(tmp_path):
    paths = []
    for i in range(3):
        paths.append(Path(tmp_path / f"{i}.png"))
        Image.new("RGB", (4, 4), (90 * i, 10, 200)).save(paths[-1])
    files = FileSet(tuple(paths), torch.tensor([0, 1, 0]), 2, 4)
    grey = with_channels(Splits("toy", files, None, None, ("a", "b"), (0.5,) * 3, (0.5,) * 3), 1)
    assert grey.channels == 1
    in_memory = ImageSet(files.decoded(), files.labels, 2)
    whole = Splits("toy", in_memory, None, None, ("a", "b"), (0.5,) * 3, (0.5,) * 3)
    wanted = with_channels(whole, 1)
    assert torch.equal(grey.train.decoded(), wanted.train.images)
    assert torch.equal(grey.train.subset(torch.tensor([2])).decoded(), wanted.train.images[2:])
    assert (grey.mean, grey.std) == (wanted.mean, wanted.std)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_other_numbers_are_refused(channels):
    with pytest.raises(InputError, match=f"--channels {channels}"):
        with_channels(splits(3), channels)
