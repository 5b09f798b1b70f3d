"""At what size the images of a folder are read: the checkpoint's, their own, or the usual one."""

from __future__ import annotations

from collections import Counter

from regraft.config import DataConfig
from regraft.data import known_names
from regraft.data.folder import joined, scan_folder
from regraft.data.load import folder_of

_MOST = 2000
"""Images that are looked at, spread over the folder."""


def side_of(data: DataConfig, wanted: int | None) -> tuple[int | None, str]:
    """Return the side to which images are brought, and what to say of it.

    Args:
        data: The data set.
        wanted: The side that is asked for, or that a checkpoint says it is for.

    Returns:
        The side (None: as the data are, or the usual one) and a sentence, empty where nothing is resized.
    """
    if data.name in known_names():
        return wanted, ""
    sizes = _sizes(data)
    if not sizes:
        return wanted, ""
    if wanted is None and len(sizes) == 1:
        (width, height), _ = sizes.most_common(1)[0]
        wanted = min(width, height)
    side = wanted or 224
    others = sum(n for size, n in sizes.items() if size != (side, side))
    if not others:
        return wanted, ""
    (width, height), _ = sizes.most_common(1)[0]
    what = f"{width}x{height} pixels" if len(sizes) == 1 else f"{len(sizes)} different sizes"
    why = "" if wanted else ", the usual side (--image-size says another)"
    return side, f"the images of {data.name} are of {what} and are brought to {side}x{side}{why}"


def _sizes(data: DataConfig) -> Counter[tuple[int, int]]:
    """Return how many images have which width and height, of those that can be opened."""
    from PIL import Image

    folder = folder_of(data)
    paths = joined(scan_folder(folder, image_size=1, unreadable=data.unreadable)).paths
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths[:: max(1, -(-len(paths) // _MOST))]:
        try:
            with Image.open(path) as image:
                sizes[image.size] += 1
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # who decodes it says what is wrong
    return sizes


__all__ = ["side_of"]
