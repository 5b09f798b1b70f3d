import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from regraft.data import decode, picture_size
from regraft.data.decode import LARGE
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


def ramp(bits):
    """Return grey values, 48 x 64, from 0 to the highest of so many bits."""
    values = np.linspace(0, 2**bits - 1, 48 * 64).round().reshape(48, 64)
    values[0, 0], values[-1, -1] = 0, 2**bits - 1
    return values


def eight_bits(tmp_path):
    return decode(save(tmp_path, Image.fromarray(ramp(8).astype(np.uint8)), "ref.png"), 48).int()


@pytest.mark.parametrize("name", ["g.png", "g.tif", "g.pgm"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_whole_numbers_of_more_bits_keep_their_picture(tmp_path, name, bits):
    if name == "g.pgm" and bits < 16:
        pytest.skip("a PGM says its highest value, which Pillow scales to 16 bits")
    path = save(tmp_path, Image.fromarray(ramp(bits).astype(np.uint16)), name)
    assert (decode(path, 48).int() - eight_bits(tmp_path)).abs().max() <= 1


def test_a_transparent_shade_of_16_bits_is_white(tmp_path):
    shades = np.full((8, 8), 30000, np.uint16)
    shades[:, :4] = 0
    pixels = decode(save(tmp_path, Image.fromarray(shades), "g.png", transparency=0), 8)
    assert pixels[:, 0, 0].tolist() == [255] * 3
    assert pixels[:, 0, 7].tolist() == [30000 >> 8] * 3


@pytest.mark.parametrize(
    ("dtype", "highest"), [("i4", 65535), ("f4", 1), ("f4", 255), ("f4", 65535)]
)
def test_tiffs_of_32_bits_keep_their_picture(tmp_path, dtype, highest):
    values = (ramp(16) / 65535 * highest).astype(dtype)
    path = save(tmp_path, Image.fromarray(values), "g.tif")
    assert (decode(path, 48).int() - eight_bits(tmp_path)).abs().max() <= 1


@pytest.mark.parametrize("value", [-1.0, 70000.0, float("nan"), float("inf")])
def test_values_that_are_no_shades_are_refused_by_name(tmp_path, value):
    values = ramp(8).astype("f4")
    values[3, 3] = value
    path = save(tmp_path, Image.fromarray(values), "depth.tif")
    with pytest.raises(InputError, match=r"depth.tif cannot be decoded.*its values go from"):
        decode(path, 8)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def exif(*entries):
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 0)


@pytest.mark.parametrize("block", [b"\0\x08\0\x02", b"II*\0\x08", b"", exif((0x0112, 2, 1, 6))[6:]])
def test_a_damaged_exif_block_is_passed_over(tmp_path, block):
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    data = io.BytesIO()
    image.save(data, "PNG")
    raw = data.getvalue()
    path = tmp_path / "odd.png"
    path.write_bytes(raw[:33] + chunk(b"eXIf", block) + raw[33:])
    assert colour(decode(path, 8)) == [10, 20, 30]


def test_only_the_orientation_of_an_exif_block_is_read(tmp_path):
    image = Image.new("RGB", (16, 16), "white")
    image.paste("black", (0, 0, 16, 8))
    odd = exif((0x0112, 3, 1, 3), (0x011A, 7, 1, 72))
    pixels = decode(save(tmp_path, image, "odd.jpg", exif=odd, quality=95), 16).float()
    assert pixels[:, :6].mean() > 240
    assert pixels[:, 10:].mean() < 15


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_that_of_pillow(tmp_path, turn):
    from PIL import ImageOps

    noise = torch.randint(0, 256, (20, 12, 3), dtype=torch.uint8).numpy()
    block = Image.Exif()
    block[0x0112] = turn
    path = save(tmp_path, Image.fromarray(noise), "turned.png", exif=block)
    upright = ImageOps.exif_transpose(Image.open(path))
    plain = save(tmp_path, upright, "upright.png", exif=b"")
    assert torch.equal(decode(path, 12), decode(plain, 12))
    assert picture_size(path) == upright.size


@pytest.mark.parametrize(
    ("mode", "name"), [("L", "l.png"), ("P", "p.png"), ("1", "b.png"), ("RGB", "c.jpg")]
)
def test_a_large_picture_is_reduced_and_looks_the_same(tmp_path, mode, name):
    side = int(LARGE**0.5) + 8
    image = Image.new("L", (side, side), 255)
    image.paste(0, (0, 0, side // 2, side))
    pixels = decode(save(tmp_path, image.convert(mode), name), 32).float()
    assert pixels[:, :, :14].mean() < 3
    assert pixels[:, :, 18:].mean() > 252


def test_a_flat_picture_of_169_million_pixels_takes_little_memory(tmp_path):
    pytest.importorskip("resource")
    path = save(tmp_path, Image.new("L", (13_000, 13_000), 7), "flat.png")
    program = (
        "import resource, sys, warnings; warnings.simplefilter('ignore');"
        "from pathlib import Path; from regraft.data import decode;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "x = decode(Path(sys.argv[1]), 64);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, int(x.max()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=True
    )
    kilobytes, value = map(int, done.stdout.split())
    assert value == 7
    assert kilobytes < 400_000  # its own pixels are 169 MB


def test_a_picture_without_a_size_has_none(tmp_path):
    assert picture_size(Path(tmp_path) / "none.png") is None
