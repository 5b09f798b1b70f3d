"""Which images of a user are for training, for choosing and for the final figure, as a list.

A list is a CSV file with the columns image, class, split: it can be read, edited and used again.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from regraft.config import DataConfig, check
from regraft.errors import InputError
from regraft.machine import expanded

from .folder import PART_NAMES, joined, scan_folder
from .images import Splits, channel_moments
from .known import graph_names, known_names, load_known
from .lazy import FileSet
from .load import PARTS, file_name, folder_of, folder_side, gathered, sorted_rows
from .split import per_class_subset, stratified_split

_COLUMNS = ("image", "class", "split")
_CALLED = {
    name: part
    for part, names in zip(PARTS, PART_NAMES.values(), strict=True)
    for name in (part, *names)
}


def load_partition(config: DataConfig, *, test: float = 0.2, listed: Path | None = None) -> Splits:
    """Load a known set or a folder and part it into training, validation and test images.

    A folder's own val and test are used. What it lacks is held out of the training images, every
    class in proportion: the share `test` first, then `config.validation`, both of all images. With
    `config.shots` that many images of each class are kept for training, and no more for validation
    (the first by name, of a folder's own val too), since who has few images has few to choose with.

    Args:
        config: The data part of a run's configuration.
        test: Share of a folder without test images that is held out for them; 0 for none.
        listed: A list that says for each image which part it belongs to, instead of all this.

    Raises:
        InputError: A share out of its range, no image for validation, a class that would keep no
            image for training, or a list that does not fit the data.
    """
    if config.name in graph_names():
        raise InputError(f"data name={config.name!r} is a graph: expected images")
    check(config)
    if not 0.0 <= test < 1.0:
        raise InputError(f"--test {test}: expected the share to hold out, at least 0 and below 1")
    if config.train_size is not None and config.shots is not None:
        raise InputError(
            f"--train-size {config.train_size} and --shots {config.shots} exclude each other: give one"
        )
    if config.name in known_names():
        return _known(config, listed)
    return _folder(replace(config, name=folder_of(config)), test, listed)


def _known(config: DataConfig, listed: Path | None) -> Splits:
    known = load_known(config.name, config.root, download=config.download)
    names = [f"train/{i}" for i in range(len(known.train))]
    parts = _parted(known.train.labels, names, known.classes, config, 0.0, listed, held_out=False)
    train, validation = (known.train.subset(parts[part]) for part in PARTS[:2])
    train, validation, test = (
        s.resized(config.image_size) for s in (train, validation, known.test)
    )
    mean, std = channel_moments(train.images)
    rows = sorted_rows(
        (names[i], known.classes[int(known.train.labels[i])], part)
        for part in PARTS[:2]
        for i in parts[part].tolist()
    )
    return Splits(config.name, train, validation, test, known.classes, mean, std, rows)


def _folder(config: DataConfig, test: float, listed: Path | None) -> Splits:
    root = expanded(config.name)
    folder = scan_folder(root, image_size=folder_side(config)[0], unreadable=config.unreadable)
    whole = joined(folder) if listed is not None else folder.train
    names = [file_name(path, root) for path in whole.paths]
    share = test if folder.test is None else 0.0
    own = folder.validation is not None
    parts = _parted(whole.labels, names, folder.classes, config, share, listed, held_out=own)
    chosen: list[FileSet | None] = [
        whole.subset(parts[part]) if len(parts[part]) else None for part in PARTS
    ]
    if listed is None:
        if folder.validation is not None:
            chosen[1] = folder.validation
            if config.shots is not None:
                few = _at_most(folder.validation.labels, config.shots)
                chosen[1] = folder.validation.subset(few)
        chosen[2] = chosen[2] if folder.test is None else folder.test
    train, validation, tested = chosen
    if train is None:
        raise InputError(f"{listed} has no image for training: give some the split train")
    return gathered(root, (train, validation, tested), folder.classes)


def _parted(
    labels: Tensor,
    names: list[str],
    classes: tuple[str, ...],
    config: DataConfig,
    test: float,
    listed: Path | None,
    *,
    held_out: bool,
) -> dict[str, Tensor]:
    """Return sorted indices of each part; `held_out` says that validation images are elsewhere."""
    try:
        if listed is not None:
            return _as_listed(labels, names, classes, listed, known=config.name in known_names())
        return _drawn(labels, config, test, held_out=held_out)
    except InputError as error:
        # Splitting knows classes by number only.
        text = re.sub(r"\bclass (\d+)\b", lambda m: f"class {classes[int(m[1])]!r}", str(error))
        raise InputError(text) from error


def _drawn(labels: Tensor, config: DataConfig, test: float, *, held_out: bool) -> dict[str, Tensor]:
    seed = config.split_seed
    empty = torch.empty(0, dtype=torch.int64)
    kept, tested = torch.arange(len(labels)), empty
    if test > 0:
        kept, tested = stratified_split(labels, test, seed, f"--test {test:g}")
    chosen = empty
    if not held_out:
        if config.validation == 0:
            raise InputError(
                "--validation 0 and the data have no validation images: lr, weight and the state to "
                "keep are chosen on them; hold out a share, e.g. 0.2, or bring a folder val"
            )
        share = config.validation * len(labels) / len(kept)
        if share >= 1:
            raise InputError(
                f"--validation {config.validation:g} and --test {test:g} leave nothing to train on: "
                "expected less than 1 together"
            )
        said = f"--validation {config.validation:g}"
        rest, chosen = stratified_split(labels[kept], share, seed, said)
        kept, chosen = kept[rest], kept[chosen]
    if config.shots is not None:
        try:
            kept = kept[per_class_subset(labels[kept], config.shots, seed)]
        except InputError as error:
            raise InputError(f"--shots, of the images left for training: {error}") from error
        chosen = chosen[_at_most(labels[chosen], config.shots)]
    return {"train": kept, "validation": chosen, "test": tested}


def _at_most(labels: Tensor, k: int) -> Tensor:
    """Return the indices of the first k images of each class."""
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    ranks = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return order[ranks < k].sort().values


def _as_listed(
    labels: Tensor, names: list[str], classes: tuple[str, ...], listed: Path, *, known: bool
) -> dict[str, Tensor]:
    place = {name: i for i, name in enumerate(names)}
    rows: dict[str, list[int]] = {part: [] for part in PARTS}
    named: set[str] = set()
    for line, (written, label, part) in read_list(listed):
        name = written if written in place else posixpath.normpath(written.replace("\\", "/"))
        if part not in PARTS:
            raise InputError(
                f"{listed}, line {line}: split {part!r}, expected one of {', '.join(PARTS)}"
            )
        if name not in place:
            raise InputError(
                f"{listed}, line {line}: {written!r} is not among the data's images, which are called "
                f"{names[0]!r} and the like"
            )
        if name in named:
            raise InputError(f"{listed}, line {line}: {name!r} is listed twice")
        named.add(name)
        if classes[int(labels[place[name]])] not in (label, unicodedata.normalize("NFC", label)):
            raise InputError(
                f"{listed}, line {line}: {name!r} is of class {label!r} there and of "
                f"{classes[int(labels[place[name]])]!r} in the data"
            )
        rows[part].append(place[name])
    parts = {k: torch.tensor(sorted(v), dtype=torch.int64) for k, v in rows.items()}
    counts = torch.bincount(labels[parts["train"]], minlength=len(classes))
    if not bool(counts.all()):
        name = classes[int((counts == 0).nonzero()[0])]
        raise InputError(f"{listed} has no training image of class {name!r}: each class needs one")
    left = len(names) - len(named)
    if left and not known:
        warnings.warn(f"left out {left} image(s) that {listed} does not list", stacklevel=2)
    return parts


def read_list(listed: Path) -> list[tuple[int, list[str]]]:
    """Return the rows of a list, each with its line: image, class, split.

    A list that a spreadsheet saved is read too: with a byte order mark, semicolons or tabs, empty lines;
    with columns in another order or more of them; and with parts called as folders may be.

    Raises:
        InputError: It cannot be read, or lacks a column.
    """
    try:
        # Names of files may be of any bytes, and hold line ends.
        text = listed.read_bytes().decode("utf-8-sig", "surrogateescape")
        # A spreadsheet writes what its country separates columns by, and some say it in a line of its own.
        head = re.search(r"^.*\bimage\b.*$", text, re.IGNORECASE | re.MULTILINE)
        separator = max(",;\t", key=(head[0] if head else "").count)
        table = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        lines = [(i, row) for i, row in enumerate(table, start=1) if any(c.strip() for c in row)]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{listed} cannot be read as a list of images ({error})") from error
    lines = [line for line in lines if not line[1][0].lower().startswith("sep=")]
    columns = [name.strip().lower() for name in lines[0][1]] if lines else []
    if not set(_COLUMNS) <= set(columns):
        raise InputError(f"{listed}: expected a CSV file with the columns {','.join(_COLUMNS)}")
    rows = []
    for number, line in lines[1:]:
        if len(line) != len(columns):
            raise InputError(
                f"{listed}, line {number}: {len(line)} columns, expected {len(columns)}"
            )
        name, label, part = (line[columns.index(column)] for column in _COLUMNS)
        rows.append((number, [name, label, _CALLED.get(part.strip().casefold(), part)]))
    return rows
