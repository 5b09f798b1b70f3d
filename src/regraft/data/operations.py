"""Operations on batches of images in [0, 1], with parameters for each image, all differentiable.

Each takes images [n, C, H, W] and parameters [n, k]. What leaves the image is filled with 0, and what
leaves [0, 1] is cut off there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""

_FILL = 0.5


def _at(parameters: Tensor, column: int, images: Tensor) -> Tensor:
    return parameters[:, column, None, None, None].to(images)


def flip(images: Tensor, parameters: Tensor) -> Tensor:
    """Mirror left and right where the one parameter is above a half."""
    return torch.where(parameters[:, 0, None, None, None] > 0.5, images.flip(3), images)


def shift(images: Tensor, parameters: Tensor) -> Tensor:
    """Shift by whole pixels: down and right by fractions of height and width in (-1, 1), rounded."""
    moved = []
    for column, side in ((0, images.shape[2]), (1, images.shape[3])):
        moved.append((parameters[:, column] * side).round().long())
    return shift_by(images, *moved)


def shift_by(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Shift each image by whole pixels, int64 [n] each."""
    _, c, h, w = images.shape
    rows = torch.arange(h, device=images.device) - down[:, None]
    columns = torch.arange(w, device=images.device) - right[:, None]
    inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None]
    index = rows.clamp(0, h - 1)[:, :, None] * w + columns.clamp(0, w - 1)[:, None]
    flat = images.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, c, -1))
    return torch.where(inside[:, None], flat.view_as(images), images.new_zeros(()))


def affine(images: Tensor, parameters: Tensor) -> Tensor:
    """Sample where [[a, b, x], [c, d, y]] sends each position, bilinear.

    Positions run from -1 to 1 across the image, so x = 1 moves by half the width.
    """
    theta = parameters.to(images).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def brightness(images: Tensor, parameters: Tensor) -> Tensor:
    """Multiply by a factor."""
    return (images * _at(parameters, 0, images)).clamp(0, 1)


def grey(images: Tensor) -> Tensor:
    """Return the brightness of each pixel, [n, 1, H, W]; the mean unless there are three channels."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    weights = images.new_tensor(_GREY).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def contrast(images: Tensor, parameters: Tensor) -> Tensor:
    """Multiply the distance from the image's mean brightness by a factor."""
    mean = grey(images).mean((2, 3), keepdim=True)
    return (mean + (images - mean) * _at(parameters, 0, images)).clamp(0, 1)


def saturation(images: Tensor, parameters: Tensor) -> Tensor:
    """Multiply the distance from grey by a factor; nothing happens to a single channel."""
    if images.shape[1] == 1:
        return images
    plain = grey(images)
    return (plain + (images - plain) * _at(parameters, 0, images)).clamp(0, 1)


def solarise(images: Tensor, parameters: Tensor) -> Tensor:
    """Invert what is at or above a threshold."""
    return torch.where(images >= _at(parameters, 0, images), 1 - images, images)


def sharpness(images: Tensor, parameters: Tensor) -> Tensor:
    """Multiply the distance from a 3x3 smoothing by a factor; the outermost pixels stay."""
    c, h, w = images.shape[1:]
    if min(h, w) < 3:
        return images
    kernel = images.new_ones(3, 3)
    kernel[1, 1] = 5
    inner = F.conv2d(images, (kernel / 13).expand(c, 1, 3, 3), groups=c)
    border = torch.zeros(h, w, dtype=torch.bool, device=images.device)
    border[1:-1, 1:-1] = True
    smooth = torch.where(border, F.pad(inner, (1, 1, 1, 1)), images)
    return (smooth + (images - smooth) * _at(parameters, 0, images)).clamp(0, 1)


def blur_radius(side: int) -> int:
    """Return how many pixels the blur's window reaches: a twentieth of the side, at least two."""
    return min(max(2, round(side / 20)), side - 1)


def blur(images: Tensor, parameters: Tensor) -> Tensor:
    """Gaussian blur with a standard deviation in pixels; the border is reflected.

    The window has `blur_radius` pixels on either side whatever the deviation is.
    """
    n, c, h, w = images.shape
    sigma = parameters[:, 0].to(images)
    out = images.reshape(1, n * c, h, w)
    for side, shape in ((h, (n, 1, -1, 1)), (w, (n, 1, 1, -1))):
        radius = blur_radius(side)
        at = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
        weights = (-0.5 * (at / sigma[:, None]) ** 2).exp()
        weights = (weights / weights.sum(1, keepdim=True)).view(shape)
        kernel = weights.repeat_interleave(c, 0)
        pad = (0, 0, radius, radius) if shape[2] == -1 else (radius, radius, 0, 0)
        out = F.conv2d(F.pad(out, pad, mode="reflect"), kernel, groups=n * c)
    return out.view_as(images)


def cutout(images: Tensor, parameters: Tensor) -> Tensor:
    """Fill a square with grey: its centre's height and width in (0, 1), its side as a fraction."""
    inside = square(images, parameters[:, :2], parameters[:, 2])
    return torch.where(inside, images.new_tensor(_FILL), images)


def square(images: Tensor, centre: Tensor, size: Tensor | float) -> Tensor:
    """Return which pixels lie in a square, bool [n, 1, H, W].

    Args:
        images: [n, C, H, W].
        centre: Height and width in (0, 1), [n, 2].
        size: The square's side as a fraction of the image's, one for all or [n].
    """
    inside = []
    for column, side in ((0, images.shape[2]), (1, images.shape[3])):
        middle = (centre[:, column] * side).floor()[:, None]
        place = torch.arange(side, device=images.device)
        reach = size * side / 2
        limit = reach[:, None] if isinstance(reach, Tensor) else reach
        inside.append((place - middle + 0.5).abs() < limit)
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def noise(images: Tensor, parameters: Tensor) -> Tensor:
    """Add normal noise of a standard deviation, the same again for the same seed (below 2^24)."""
    field = _field(parameters[:, 1].long(), images[0].numel()).to(images)
    return (images + field.view_as(images) * _at(parameters, 0, images)).clamp(0, 1)


def _field(seeds: Tensor, size: int) -> Tensor:
    """Return normal noise of each seed, float32 [n, size]: two hashed uniforms, Box and Muller."""
    place = torch.arange(2 * size, device=seeds.device, dtype=torch.int64)
    words = _hashed(_hashed(seeds[:, None] + 1) + place)
    unit = (words.to(torch.float32) + 0.5) * 2.0**-32
    radius = (-2 * unit[:, :size].clamp(1e-7, 1 - 1e-7).log()).sqrt()
    return radius * (2 * math.pi * unit[:, size:]).cos()


def _hashed(x: Tensor) -> Tensor:
    """Mix int64 values into 32 bits, by multiplications that keep the low 32 bits."""
    for factor in (0x7FEB352D, 0x846CA68B):
        x = x & 0xFFFFFFFF
        x = ((x ^ (x >> 16)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 15)
