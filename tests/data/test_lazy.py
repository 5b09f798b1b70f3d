import warnings

import pytest
import torch

from regraft.data import FileSet, decode
from regraft.errors import InputError

Image = pytest.importorskip("PIL.Image")


def save(tmp_path, image, name="one.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def colour(pixels):
    return pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2].tolist()


def test_the_shorter_side_is_fitted_and_the_centre_cut_out(tmp_path):
    image = Image.new("RGB", (40, 10), "red")
    image.paste("blue", (15, 0, 25, 10))
    pixels = decode(save(tmp_path, image), 10)
    assert pixels.shape == (3, 10, 10)
    assert pixels.dtype == torch.uint8
    assert bool((pixels == torch.tensor([0, 0, 255], dtype=torch.uint8)[:, None, None]).all())


@pytest.mark.parametrize(
    ("mode", "fill", "expected"),
    [
        ("L", 77, [77, 77, 77]),
        ("1", 1, [255, 255, 255]),
        ("LA", (77, 255), [77, 77, 77]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),
        ("I;16", 77 << 8, [77, 77, 77]),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, fill, expected):
    assert colour(decode(save(tmp_path, Image.new(mode, (6, 6), fill)), 4)) == expected


def test_palette_images_become_rgb(tmp_path):
    image = Image.new("P", (6, 6), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    assert colour(decode(save(tmp_path, image), 4)) == [9, 8, 7]


def test_transparency_of_a_palette_shows_white(tmp_path):
    image = Image.new("P", (6, 6), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    assert colour(decode(save(tmp_path, image, transparency=1), 4)) == [255, 255, 255]


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    path = save(tmp_path, Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "one.jpg")
    assert colour(decode(path, 8)) == [255, 255, 255]


def test_the_camera_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (16, 16), "white")
    image.paste("black", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels = decode(save(tmp_path, image, "one.jpg", exif=exif, quality=95), 16)
    assert float(pixels[:, :6].float().mean()) > 240
    assert float(pixels[:, 10:].float().mean()) < 15


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_other_files_are_named(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken.png cannot be decoded as an image"):
        decode(path, 8)


def test_cut_off_files_are_named(tmp_path):
    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    path = save(tmp_path, Image.fromarray(noise), "cut.jpg")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"cut.jpg cannot be decoded.*(?i:truncated)"):
        decode(path, 8)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone.png cannot be decoded"):
        decode(tmp_path / "gone.png", 8)


def test_decoding_all_equals_decoding_each(tmp_path):
    paths = [
        save(tmp_path, Image.new("RGB", (5, 5), (i, 2 * i, 3 * i)), f"{i}.png") for i in range(7)
    ]
    files = FileSet(tuple(paths), torch.arange(7), 7, 4)
    assert torch.equal(files.decoded(), torch.stack([files[i] for i in range(7)]))
    part = files.subset(torch.tensor([5, 2]))
    assert part.labels.tolist() == [5, 2]
    assert torch.equal(part[0], files[5])
    assert files.nbytes == files.decoded().numel()


def test_decoding_leaves_the_warning_filters_alone(tmp_path):
    path = save(tmp_path, Image.new("RGB", (5, 5)))
    files = FileSet((path,) * 200, torch.zeros(200, dtype=torch.int64), 1, 4)
    before = list(warnings.filters)
    files.decoded()
    assert warnings.filters == before


def test_decoding_all_lists_the_unreadable_ones(tmp_path):
    paths = []
    for i in range(7):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(b"?")
    files = FileSet(tuple(paths), torch.zeros(7, dtype=torch.int64), 1, 4)
    with pytest.raises(InputError, match=r"0.png cannot.*4.png cannot.*and 2 more.*'skip'"):
        files.decoded()
    assert sorted(files.unreadable()) == list(range(7))
