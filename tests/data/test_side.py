"""At what size the images of a folder are read, and what is said of it."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regraft.cli import main
from regraft.config import DataConfig
from regraft.data import load
from regraft.data.load import folder_side
from regraft.data.side import side_of

image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path):
    """Make a folder of two classes of six images of the sizes that are given in turn."""

    def make(*sizes):
        for label in ("ant", "bee"):
            (tmp_path / "photos" / label).mkdir(parents=True)
            for i in range(6):
                colour = (40 * i, 100 * (label == "ant"), 30)
                picture = image.new("RGB", sizes[i % len(sizes)], colour)
                picture.save(tmp_path / "photos" / label / f"{i}.png")
        return tmp_path / "photos"

    return make


@pytest.mark.parametrize(
    ("sizes", "wanted", "side", "says"),
    [
        ([(32, 32)], None, 32, ""),
        ([(32, 32)], 32, 32, ""),
        ([(32, 32)], 64, 64, "are of 32x32 pixels and are brought to 64x64"),
        ([(40, 32)], None, 32, "are of 40x32 pixels and are brought to 32x32"),
        ([(32, 32), (48, 32)], 32, 32, "are of 2 different sizes and are brought to 32x32"),
        ([(32, 32), (48, 32)], None, 224, "brought to 224x224, the usual side (--image-size"),
    ],
)
def test_the_side_of_a_folder(folder, sizes, wanted, side, says):
    found, note = side_of(folder(*sizes), wanted)
    assert found == side
    assert says in note
    assert bool(note) == bool(says)


def test_pictures_that_a_camera_turned_are_of_the_size_they_are_shown_in(folder):
    exif = image.Exif()
    exif[0x0112] = 6
    photos = folder((20, 12))
    image.new("RGB", (12, 20)).save(photos / "ant" / "turned.jpg", exif=exif.tobytes())
    found, note = side_of(photos, None)
    assert found == 12
    assert "of 20x12 pixels" in note


def test_small_images_of_one_size_are_loaded_as_they_are(folder):
    data = DataConfig(name=str(folder((28, 28))), validation=0.25)
    assert load(data).image_size == 28
    assert load(replace(data, image_size=12)).image_size == 12


def test_large_ones_and_those_of_many_sizes_at_the_usual_size(folder):
    data = DataConfig(name=str(folder((300, 300))))
    side, note = folder_side(data)
    assert side == 224
    assert "are of 300x300 pixels and are brought to 224x224, the usual side" in note
    assert folder_side(replace(data, image_size=96)) == (96, "")
    assert folder_side(data, 300) == (300, "")


@pytest.mark.parametrize("sizes", [[(16, 16)], [(16, 16), (20, 16)]])
def test_a_merge_reads_images_at_their_own_size_and_says_where_not(
    folder, sizes, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"any_size_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n\n"
        "def network(num_classes, in_channels, image_size):\n"
        f"    with open({str(tmp_path / 'sizes')!r}, 'a') as file:\n"
        "        file.write(f'{image_size} ')\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.ReLU(),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))\n"
    )
    for file in ("a", "b"):
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        )
        save_file(net.state_dict(), tmp_path / f"{file}.safetensors")
    words = ["merge", "a.safetensors", "b.safetensors", "--model", f"{name}:network"]
    words += ["--data", str(folder(*sizes)), "--points", "0", "--out", "out"]
    torch.manual_seed(0)
    assert main(words) == 0
    said = capsys.readouterr().out + capsys.readouterr().err
    used = set((tmp_path / "sizes").read_text().split())
    if len(sizes) == 1:
        assert used == {"16"}
        assert "brought to" not in said
    else:
        assert used == {"224"}
        assert "2 different sizes and are brought to 224x224" in said
