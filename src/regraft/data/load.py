"""From a `DataConfig` to the splits of a data set, whatever its kind."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from regraft.config import DataConfig, check
from regraft.errors import InputError
from regraft.files import csv_text
from regraft.machine import expanded

from .folder import scan_folder
from .images import ImageSet, Splits, channel_moments
from .known import data_root, graph_names, known_names, load_known
from .lazy import FileSet
from .memory import moments, placed
from .prepare import prepared
from .side import USUAL, side_of
from .split import per_class_subset, stratified_split, stratified_subset

PARTS = ("train", "validation", "test")

_Set = TypeVar("_Set", ImageSet, FileSet)


def load(config: DataConfig) -> Splits:
    """Load a known set or a user's folder, split it, and cut the training images down.

    The validation images are held out of the training images first (a folder's own `val` is used
    as it is), then `train_size` or `shots` of the rest are kept; the seed is `split_seed`. Last
    come `channels`, `only_classes`, `rotate` and `normalize`, for all three splits. A
    folder's images become one tensor when they fit into 2 GiB and stay in their files otherwise;
    mean and std of the latter come from at most 2,048 of the training images.

    Args:
        config: The data part of a run's configuration; a name that is no known set is a folder,
            here or below the data root.

    Raises:
        InputError: An unknown name, a missing set or folder, or splits that cannot be made.
        MissingExtraError: A package that the set needs is not installed.
    """
    check(config)
    if config.train_size is not None and config.shots is not None:
        raise InputError(
            f"--train-size {config.train_size} and --shots {config.shots} exclude each other: give one"
        )
    if config.name in graph_names():
        raise InputError(
            f"data name={config.name!r} is a graph and no set of images: load it with load_graph"
        )
    if config.name in known_names():
        return prepared(_load_known(config), config)
    return prepared(_load_folder(replace(config, name=folder_of(config))), config)


def folder_of(config: DataConfig) -> str:
    """Return the path of the folder that a config's name stands for, here or below the data root.

    Raises:
        InputError: There is none; a path is not looked for.
    """
    if _is_path(config.name):
        return config.name
    below = data_root(config.root) / config.name
    if below.is_dir():
        return str(below)
    close = difflib.get_close_matches(config.name, known_names(), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(
        f"data name={config.name!r} is neither a known set nor a folder: {hint}"
        f"known are {', '.join(known_names())}, and there is no folder {config.name} here or in "
        f"{below.parent}"
    )


def folder_side(config: DataConfig, wanted: int | None = None) -> tuple[int, str]:
    """Return the side in pixels at which the images of a folder are loaded, and what to say of it.

    That is the config's, else `wanted`, else their own where all have one of at most 224 pixels, else
    224.

    Args:
        config: The folder.
        wanted: The side that the network asks for.

    Returns:
        The side, and a sentence where images are resized unasked, else nothing.
    """
    if config.image_size is not None:
        return config.image_size, ""
    return side_of(expanded(folder_of(config)), wanted, largest=USUAL)


def _is_path(name: str) -> bool:
    separators = {"/", os.sep, os.altsep or os.sep}
    return any(s in name for s in separators) or expanded(name).is_dir()


def _load_known(config: DataConfig) -> Splits:
    known = load_known(config.name, config.root, download=config.download)
    train, validation = _divide(known.train, config)
    test = known.test
    train, test = train.resized(config.image_size), test.resized(config.image_size)
    validation = None if validation is None else validation.resized(config.image_size)
    mean, std = channel_moments(train.images)
    return Splits(config.name, train, validation, test, known.classes, mean, std)


def _load_folder(config: DataConfig) -> Splits:
    root = expanded(config.name)
    folder = scan_folder(root, image_size=folder_side(config)[0], unreadable=config.unreadable)
    if folder.validation is None:
        train, validation = _divide(folder.train, config)
    else:
        train, validation = _reduce(folder.train, config), folder.validation
    return gathered(root, (train, validation, folder.test), folder.classes)


def gathered(
    root: Path, parts: tuple[FileSet, FileSet | None, FileSet | None], classes: tuple[str, ...]
) -> Splits:
    """Return files as splits: decoded where they fit, else left where they are; see `placed`.

    Args:
        root: The folder that they lie in.
        parts: Training, validation and test files.
        classes: Names of the classes.

    Raises:
        InputError: Files cannot be decoded.
    """
    rows = sorted_rows(
        (file_name(path, root), classes[label], part)
        for part, files in zip(PARTS, parts, strict=True)
        if files is not None
        for path, label in zip(files.paths, files.labels.tolist(), strict=True)
    )
    train, held_out, test = placed(*parts)
    return Splits(root.resolve().name, train, held_out, test, classes, *moments(train), rows)


def file_name(path: Path, root: Path) -> str:
    """Return what a list of images calls a file of a folder: its place there."""
    return path.relative_to(root).as_posix()


def as_list(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return rows as the list that `load_partition` takes: CSV with the columns image, class, split."""
    return csv_text([("image", "class", "split"), *rows])


def sorted_rows(rows: Iterable[tuple[str, str, str]]) -> tuple[tuple[str, str, str], ...]:
    """Return rows of image, class and part by part, class and image."""
    return tuple(sorted(rows, key=lambda row: (PARTS.index(row[2]), row[1], row[0])))


def _divide(train: _Set, config: DataConfig) -> tuple[_Set, _Set | None]:
    if config.validation == 0:
        return _reduce(train, config), None
    said = f"--validation {config.validation:g}"
    kept, held_out = stratified_split(train.labels, config.validation, config.split_seed, said)
    return _reduce(train.subset(kept), config), train.subset(held_out)


def _reduce(train: _Set, config: DataConfig) -> _Set:
    try:
        if config.shots is not None:
            chosen = per_class_subset(train.labels, config.shots, config.split_seed)
        elif config.train_size is not None:
            chosen = stratified_subset(train.labels, config.train_size, config.split_seed)
        else:
            return train
    except InputError as error:
        option = "--train-size" if config.shots is None else "--shots"
        raise InputError(
            f"{option}, of the {len(train)} images left after holding out "
            f"--validation {config.validation:g}: {error}"
        ) from error
    return train.subset(chosen)
