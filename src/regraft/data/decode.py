"""One picture file to pixels: what Pillow opens, at any depth, upright, at the size that is wanted."""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft.errors import InputError, MissingExtraError

LARGE = 1 << 24
"""Pixels from which on a picture is made smaller before anything else is done with it."""

# fmt: off
_PLAIN = frozenset((
    ".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
))
_NO_PICTURES = frozenset(("BUFR", "EPS", "FLI", "GRIB", "HDF5", "MPEG", "PDF", "WMF"))
"""Formats that Pillow only knows of, that it hands to other programs, or that are films."""

_OTHER_PICTURES = frozenset((
    ".ai", ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic",
    ".heif", ".jp2", ".jxl", ".nef", ".orf", ".pdf", ".raf", ".raw", ".rw2", ".svg", ".wmf", ".xcf",
))
"""Endings of pictures that Pillow may not open; those of what was taken for a picture by its owner."""
# fmt: on

_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation to `Image.Transpose`: what brings the picture upright."""


@cache
def picture_endings() -> frozenset[str]:
    """Return the endings, in lower case, of the files that are taken for pictures."""
    try:
        from PIL import Image
    except ImportError:  # decoding says what to install
        return _PLAIN
    known = Image.registered_extensions()
    opened = (e for e, kind in known.items() if kind in Image.OPEN and kind not in _NO_PICTURES)
    return _PLAIN | frozenset(e.lower() for e in opened)


def is_picture(path: Path) -> bool:
    """Whether a file is taken for a picture, by its ending."""
    return path.suffix.lower() in picture_endings()


def is_left_out(path: Path) -> bool:
    """Whether a file is a picture of a format that cannot be opened here, by its ending."""
    return path.suffix.lower() in _OTHER_PICTURES - picture_endings()


def decode(path: Path, image_size: int) -> Tensor:
    """Decode one picture to RGB, turn it upright, fit its shorter side and cut out the centre.

    Grey and palette pictures become RGB, transparency is laid over white, and the orientation a
    camera noted (EXIF) is applied; the rest of an EXIF block is not read. Of more than 8 bits:

    - whole numbers up to 65,535 lose their lower 8 bits; a picture has 12 bits where none is above
      4,095, as microscopes write them into files of 16, and loses 4, or 8 bits where none is above 255;
    - floating-point values in [0, 1] are multiplied by 255, those up to 255 rounded, those up to
      65,535 divided by 257; anything else is refused.

    A picture of more than 16 million pixels is reduced by a whole factor first, a JPEG while it is
    decoded, so that its memory is that of the file's own pixels and little more; Pillow refuses what
    has more than 179 million.

    Args:
        path: A picture file.
        image_size: Side of the result in pixels.

    Returns:
        uint8 [3, image_size, image_size].

    Raises:
        InputError: The file cannot be decoded, or has values that are no shades; the message names it.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("pillow", "vision", "decoding images") from error
    try:
        with Image.open(path) as opened:
            turn = _TURNS.get(_orientation(opened))
            image = _reduced(opened, image_size)
            if turn is not None:
                image = image.transpose(Image.Transpose(turn))
            image = _shades(image)
            if image.has_transparency_data:
                front = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", front.size, "white"), front)
            image = image.convert("RGB")
            fitted = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
            pixels = np.array(fitted)
    except MemoryError as error:
        raise InputError(f"{path} is too large to decode in the memory that is left") from error
    # Pillow's plugins raise nearly anything on damaged files.
    except Exception as error:
        raise InputError(f"{path} cannot be decoded as an image ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def picture_size(path: Path) -> tuple[int, int] | None:
    """Return width and height of a picture as it is shown, from its header; None where it has none."""
    try:
        from PIL import Image

        with Image.open(path) as opened:
            width, height = opened.size
            return (height, width) if _orientation(opened) in (5, 6, 7, 8) else (width, height)
    # Decoding tells what is wrong with the file.
    except Exception:
        return None


def _orientation(image: Any) -> int:
    """Return the EXIF orientation, 1 where the block is missing or damaged."""
    with contextlib.suppress(Exception):
        return int(image.getexif().get(0x0112, 1))
    return 1


def _reduced(image: Any, size: int) -> Any:
    """Return a picture with its pixels, a large one made smaller by a whole factor."""
    width, height = image.size
    if width * height <= LARGE:
        image.load()
        return image
    factor = max(1, min(width, height) // (4 * size))
    if factor == 1:
        image.load()
        return image
    # A JPEG skips the finest of its own frequencies; other formats are decoded whole.
    image.draft(None, (width // factor, height // factor))
    factor = max(1, min(image.size) // (4 * size))
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode == "P" or image.mode.startswith("I;16"):
        # Neither can be averaged as it is; every so manieth pixel stands for its neighbours.
        image.load()
        small = (max(1, image.width // factor), max(1, image.height // factor))
        return image.resize(small, 0)
    return image.reduce(factor) if factor > 1 else image


def _shades(image: Any) -> Any:
    """Return a picture of at most 8 bits a channel, white where a shade of more bits is transparent.

    Raises:
        ValueError: Values that are no shades of grey.
    """
    from PIL import Image

    if not (image.mode.startswith("I;16") or image.mode in ("I", "F")):
        return image
    values = np.asarray(image)
    low, high = values.min(initial=0), values.max(initial=0)
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
        raise ValueError(
            f"its values go from {low:g} to {high:g}: expected shades from 0 to 255, 65535, or 1.0"
        )
    if image.mode == "F":
        factor = 255.0 if high <= 1 else 1.0 if high <= 255 else 1 / 257
        return Image.fromarray((values * factor).round().astype(np.uint8))
    lost = 0 if high <= 255 else 4 if high <= 4095 else 8
    clear = values == image.info.get("transparency", -1)
    return Image.fromarray(np.where(clear, 255, values.astype(np.uint16) >> lost).astype(np.uint8))
