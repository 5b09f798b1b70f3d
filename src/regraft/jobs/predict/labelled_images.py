"""The labelled images a network is measured on: a known set's, or those of a user's folder."""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft.checkpoints.model_card import EITHER
from regraft.errors import InputError, few
from regraft.machine import expanded

from .used_images import Seen


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images of a data set that a network knows the classes of.

    Attributes:
        name: The data set.
        split: `test`, `all` of a folder without test images, or what `Seen.choose` says.
        images: An `ImageSet`, or a `FileSet` whose files are decoded as they are needed.
        labels: int64 [n], in the network's order.
        note: What the user has to know of the choice of images; empty where nothing was left out.
    """

    name: str
    split: str
    images: Any
    labels: Any
    note: str = ""

    def pixels(self, size: int) -> Iterator[Any]:
        """Yield the images in batches, uint8 [b, C, H, W]; a folder of any size fits into memory.

        Raises:
            InputError: Files cannot be decoded; the message names the first ones.
        """
        import torch

        for rows in torch.arange(len(self.labels)).split(size):
            # Threads decode into the batch, outside of the mode that the caller predicts in.
            with torch.inference_mode(False):
                pixels = self.images.subset(rows).decoded()
            yield pixels


def labelled_images(
    ticket: Any,
    path: Path,
    name: str,
    root: str | None,
    *,
    download: bool,
    trained_on: Seen | None = None,
    unreadable: Any = "refuse",
) -> Labelled:
    """Return the images of a data set to measure a network on, as the network takes them.

    Args:
        ticket: What the network's file says it is of.
        path: The file, for errors.
        name: A known set, or a folder here or below the data root.
        root: Data root.
        download: Fetch a known set that is missing.
        trained_on: Which images of a folder the network was made with; all are taken without it.
        unreadable: What is done about images that cannot be decoded, see `scan_folder`.

    Raises:
        InputError: No such set or folder, one with classes or channels the network has not, or no
            image that it was not made with.
    """
    import torch

    from regraft.data import ImageSet, graph_names, known_names, load_known, resize
    from regraft.data.channels import to_channels

    shape, classes = ticket.about["input"], ticket.about["classes"]
    size, channels = shape["image_size"], shape["channels"]
    if name in graph_names():
        raise InputError(
            f"{name} is a graph and {path} takes images: give a set of images, or a folder"
        )
    note = ""
    if name in known_names():
        known = load_known(name, root, download=download)
        images, split, there = known.test, "test", known.classes
        pixels = resize(images.images, size)
        if {channels, images.channels} == {1, 3}:  # as training brings images to its channels
            pixels = to_channels(pixels, channels)
        images = ImageSet(pixels, images.labels, images.num_classes)
    else:
        where = _place(name, root)
        images, split, there, note = _folder(where, size, unreadable, trained_on)
        if channels == 1:
            images = replace(images, channels=1)
        name = where.resolve().name
    rows = _rows(classes)
    strange = [c for c in there if c not in rows]
    if strange:
        raise InputError(
            f"data {name} has the class {strange[0]!r}, which {path} does not know: it knows "
            f"{few(classes, 10)}"
        )
    if images.channels != channels:
        raise InputError(
            f"data {name} has images of {images.channels} channel(s) and {path} takes {channels}: "
            "give the set it was found on, or one like it"
        )
    index = torch.tensor([rows[c] for c in there])
    return Labelled(name, split, images, index[images.labels], note)


def _rows(classes: Sequence[str]) -> dict[str, int]:
    """Return the row of each class, and of each name of a row that models of a merge called differently.

    A name that several rows have as one of theirs is of none.
    """
    classes = [unicodedata.normalize("NFC", str(name)) for name in classes]
    parts = [name.split(EITHER) for name in classes]
    times = Counter(part for row in parts for part in dict.fromkeys(row))
    rows = {part: i for i, row in enumerate(parts) for part in row if times[part] == 1}
    return {**rows, **{name: i for i, name in enumerate(classes)}}


def _place(name: str, root: str | None) -> Path:
    """Return the folder a name stands for, here or below the data root."""
    from regraft.data import data_root, known_names

    here = expanded(name)
    place = next((p for p in (here, data_root(root) / name) if p.is_dir()), None)
    if place is None:
        close = difflib.get_close_matches(name, known_names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(
            f"data {name!r} is neither a known set nor a folder: {hint}known are "
            f"{', '.join(known_names())}"
        )
    return place


def _folder(
    where: Path, size: int, unreadable: Any, trained_on: Seen | None
) -> tuple[Any, str, tuple[str, ...], str]:
    from regraft.data import scan_folder
    from regraft.data.folder import joined

    folder = scan_folder(where, image_size=size, unreadable=unreadable, fewest=1)
    whole = joined(folder)
    files, split = (whole, "all") if folder.test is None else (folder.test, "test")
    if trained_on is None:
        return files, split, folder.classes, ""
    chosen = trained_on.choose(where, files, whole, split)
    return chosen.files, chosen.split, folder.classes, chosen.note
