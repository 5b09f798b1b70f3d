"""At what size the images of a folder are read: as asked for, as they are, or the usual one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from .decode import picture_size
from .folder import joined, scan_folder

USUAL = 224
"""Side in pixels of images whose own sizes differ, where nothing says another."""

_LOOKED_AT = 2000
"""Images that are looked at, spread over the folder."""


def side_of(folder: Path, wanted: int | None, *, largest: int | None = None) -> tuple[int, str]:
    """Return the side to which the images of a folder are brought, and what to say of it.

    Args:
        folder: The folder, as `scan_folder` reads it.
        wanted: The side that is asked for, or that a checkpoint says it is for.
        largest: The largest side that images keep unasked, or None.

    Returns:
        The side in pixels, and a sentence, empty where nothing is resized.
    """
    sizes = _sizes(folder)
    own = min(next(iter(sizes))) if len(sizes) == 1 else None
    if wanted is None and own is not None and (largest is None or own <= largest):
        wanted = own
    side = wanted or USUAL
    if all(size == (side, side) for size in sizes):
        return side, ""
    (width, height), _ = sizes.most_common(1)[0]
    what = f"{width}x{height} pixels" if len(sizes) == 1 else f"{len(sizes)} different sizes"
    why = "" if wanted else ", the usual side (--image-size says another)"
    return side, f"the images of {folder} are of {what} and are brought to {side}x{side}{why}"


def _sizes(folder: Path) -> Counter[tuple[int, int]]:
    """Return how many images are shown in which width and height, of those that can be opened."""
    paths = joined(scan_folder(folder, image_size=1)).paths
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths[:: max(1, -(-len(paths) // _LOOKED_AT))]:
        size = picture_size(path)
        if size is not None:  # who decodes it says what is wrong
            sizes[size] += 1
    return sizes
