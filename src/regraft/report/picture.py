"""Images as one picture: a grid of them, and a PNG file without a further package."""

from __future__ import annotations

import struct
import zlib

import torch
from torch import Tensor

from regraft.errors import InputError

_GAP = 2
_LEAST = 56


def contact_sheet(images: Tensor, *, columns: int) -> Tensor:
    """Return images side by side, row by row, on a grey ground.

    Small images are enlarged by whole factors, so that their pixels stay square.

    Args:
        images: Values in [0, 1], others are cut off: float [n, C, H, W]. One channel is shown in
            grey, three in colour, and of any other number the mean.
        columns: Images in a row.

    Returns:
        uint8 [height, width, 1 or 3].

    Raises:
        InputError: No image, or fewer than one column.
    """
    if len(images) == 0 or columns < 1:
        raise InputError(f"{len(images)} image(s) in columns={columns}: expected at least one")
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)
    factor = -(-_LEAST // max(images.shape[2:]))
    pixels = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    n, channels, height, width = pixels.shape
    rows = -(-n // columns)
    shape = (channels, rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP)
    sheet = torch.full(shape, 128, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        top, left = (
            _GAP + p * (s + _GAP) for p, s in zip(divmod(i, columns), (height, width), strict=True)
        )
        sheet[:, top : top + height, left : left + width] = image
    return sheet.permute(1, 2, 0).contiguous()


def png(pixels: Tensor) -> bytes:
    """Return a PNG file of an image, uint8 [H, W, 1] (grey) or [H, W, 3] (colour).

    Equal pixels give equal bytes.

    Raises:
        InputError: Another shape or dtype.
    """
    if pixels.ndim != 3 or pixels.dtype != torch.uint8 or pixels.shape[2] not in (1, 3):
        raise InputError(
            f"pixels of shape {list(pixels.shape)} and dtype {pixels.dtype}: expected uint8 "
            "[H, W, 1] or [H, W, 3]"
        )
    height, width, channels = pixels.shape
    # Each line is led by its filter: 0, none.
    lines = torch.zeros(height, 1 + width * channels, dtype=torch.uint8)
    lines[:, 1:] = pixels.reshape(height, -1)
    kind = 0 if channels == 1 else 2
    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    body = zlib.compress(lines.numpy().tobytes(), 9)
    parts = ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
