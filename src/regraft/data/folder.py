"""A user's folder of images: one subfolder a class, with or without train/val/test above them."""

from __future__ import annotations

import os
import unicodedata
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from regraft.errors import InputError, few
from regraft.machine import expanded

from .decode import is_left_out, is_picture
from .lazy import FileSet, refuse

_NO_CLASSES = frozenset(("@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found"))
"""Folders that storage systems and archives leave beside one's own: thumbnails, bins, resource forks."""
RESULT = "regraft.json"
PART_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, eq=False)
class Folder:
    """The image files of a folder; `validation` and `test` are None where it has no such part."""

    train: FileSet
    validation: FileSet | None
    test: FileSet | None
    classes: tuple[str, ...]


def scan_folder(
    path: str | Path,
    *,
    image_size: int = 224,
    unreadable: Literal["refuse", "skip"] = "refuse",
    fewest: int = 2,
) -> Folder:
    """Find the images of a folder and their classes, without keeping any image in memory.

    The layout is PATH/CLASS/IMAGE, or PATH/{train,val,test}/CLASS/IMAGE, of which only `train` is
    needed. The parts may be written in any case, and as training, valid, validation, dev, eval or
    testing; `val` and `test` may lack classes of `train`. Images may lie in folders below their class,
    also behind links. Taken is what Pillow opens, by its ending; a warning names and counts pictures of
    other formats, and folders of classes beside `train` that are none of the parts. Hidden folders and
    those that storage systems make (`@eaDir`, `__MACOSX`, ...) are passed over, results of ours too.
    Classes and images are sorted by name.

    Args:
        path: The folder.
        image_size: Side in pixels to which images are brought.
        unreadable: With `skip`, every image is decoded once to leave out, with a warning, those
            that cannot be; with `refuse`, decoding such an image later raises and names it.
        fewest: Classes that there have to be: two to train a classifier, one to measure it, which may
            then have empty ones beside it.

    Raises:
        InputError: A missing folder, no class folders, a single class, classes whose names differ
            in case only, a class without images to train on, a class in `val` or `test` that `train`
            does not have, a part without any image, or folders that can be read as parts and as
            classes.
    """
    root = expanded(path)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise InputError(f"data folder {root} {what}: expected a folder with one subfolder a class")
    if image_size < 1:
        raise InputError(f"image_size={image_size}: expected at least 1 pixel")
    places = _parts_of(root)
    trains = fewest > 1
    classes = _class_names(places.get("train", root), fewest)
    if not places:
        files = _scan(root, classes, image_size, unreadable, whole=trains)
        return Folder(files, None, None, classes)
    parts = {
        part: _scan(folder, classes, image_size, unreadable, whole=trains and part == "train")
        for part, folder in places.items()
    }
    return Folder(parts["train"], parts.get("val"), parts.get("test"), classes)


def joined(folder: Folder) -> FileSet:
    """Return the files of all parts."""
    parts = [p for p in (folder.train, folder.validation, folder.test) if p is not None]
    paths = tuple(path for part in parts for path in part.paths)
    return replace(folder.train, paths=paths, labels=torch.cat([part.labels for part in parts]))


def _parts_of(root: Path) -> dict[str, Path]:
    """Return the folders of the parts by `train`, `val` and `test`; none where there are classes."""
    below = _subfolders(root)
    parts: dict[str, Path] = {}
    for part, names in PART_NAMES.items():
        named = [p for p in below if p.name.casefold() in names]
        divided = [p for p in named if _subfolders(p)]
        if len(divided) > 1:
            raise InputError(
                f"{root} has the folders {divided[0].name!r} and {divided[1].name!r}, which both may "
                f"be the part {part}: keep one, or join them"
            )
        if named:
            parts[part] = (divided or named)[0]
    divided = {part for part, folder in parts.items() if _subfolders(folder)}
    strangers = [p for p in below if p not in parts.values()]
    if "train" in divided:
        classes = [p.name for p in strangers if _holds_images(p)]
        if len(parts) == 1 and classes:
            raise InputError(
                f"{root} has the folder {parts['train'].name!r} with folders in it beside "
                f"{classes[0]!r} with images: a part of the images beside a class; move the classes "
                f"into {parts['train'].name!r}, or rename it if it is a class"
            )
        unused = [p.name for p in strangers if any(_holds_images(q) for q in _subfolders(p))]
        if unused:
            names = ", ".join(map(repr, unused))
            warnings.warn(
                f"{root}: left out the folder(s) {names} beside {parts['train'].name!r}, which are no "
                "part by their name: rename them to val or test if they are one",
                stacklevel=2,
            )
        # A class of `train` that is missing elsewhere is told by `_scan`, so is a flat part.
        return parts
    if divided and not strangers:
        part = parts[min(divided)].name
        raise InputError(
            f"{root} has the folder {part!r} with classes in it and no training images beside it: "
            f"expected a folder train with the same classes, or name {root / part} itself"
        )
    if "train" in parts and len(parts) > 1 and not strangers:
        raise InputError(
            f"{parts['train']} has no class folders: put the images of each class into a subfolder "
            "of it, or rename the folders if train and test are the classes"
        )
    return {}


def _holds_images(folder: Path) -> bool:
    return any(is_picture(p) and p.is_file() for p in folder.iterdir())


def _subfolders(folder: Path) -> list[Path]:
    below = (p for p in folder.iterdir() if p.is_dir() and not _is_passed_over(p.name))
    return sorted((p for p in below if not _is_result(p)), key=lambda p: p.name)


def _is_result(folder: Path) -> bool:
    """Whether a folder is a result of ours, or the `runs` that they lie in, and so no class."""
    return (folder / RESULT).is_file() or (
        folder.name == "runs" and any(folder.glob(f"*/{RESULT}"))
    )


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _NO_CLASSES


def _class_of(folder: Path) -> str:
    """Return the class that a folder is of: its name, in the form that is the same on all systems."""
    return unicodedata.normalize("NFC", folder.name)


def _class_names(folder: Path, fewest: int) -> tuple[str, ...]:
    names = tuple(sorted(map(_class_of, _subfolders(folder))))
    if not names:
        raise InputError(
            f"{folder} has no class folders: put the images of each class into a subfolder of it"
        )
    if len(names) < fewest:
        raise InputError(
            f"{folder} has a single class, {names[0]!r}: a classifier needs at least two, "
            "each in a subfolder of its own"
        )
    known: dict[str, str] = {}
    for name in names:
        if name.casefold() in known:
            raise InputError(
                f"{folder} has the classes {known[name.casefold()]!r} and {name!r}, which only differ in "
                "case or in how accents are written and are one folder on some systems: merge them or "
                "rename one"
            )
        known[name.casefold()] = name
    return names


def image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, hidden ones left out, sorted by their place.

    Links to folders are followed, each folder once. A warning names and counts pictures of formats that
    cannot be opened here, and links that lead nowhere.

    Raises:
        InputError: A folder may not be read.
    """
    files = _files_below(folder)
    pictures = [p for p in files if is_picture(p)]
    others, lost = [p for p in files if is_left_out(p)], [p for p in pictures if not p.is_file()]
    heif = any(p.suffix.lower() in (".heic", ".heif") for p in others)
    cure = ": pip install pillow-heif" if heif else ""
    _left_out(folder, others, "of formats that Pillow does not open here", cure)
    _left_out(folder, lost, "that are links to nowhere or no files", ": copy what they stand for")
    return [p for p in pictures if p.is_file()] if lost else pictures


def _left_out(folder: Path, files: list[Path], why: str, cure: str) -> None:
    """Name and count the pictures of a folder that are not taken, if there are any."""
    if files:
        names = few(p.relative_to(folder).as_posix() for p in files)
        text = f"{folder}: left out {len(files)} picture(s) {why} ({names}){cure}"
        warnings.warn(text, stacklevel=3)


def _closed(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read ({error.strerror}): allow it, or remove it")


def _files_below(folder: Path) -> list[Path]:
    files: list[Path] = []
    entered: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_closed):
        real = os.path.realpath(place)
        # A link may lead back to where it lies.
        folders[:] = [] if real in entered else [n for n in folders if not _is_passed_over(n)]
        if real not in entered:
            files += [Path(place, n) for n in names if not n.startswith(".")]
        entered.add(real)
    return sorted(files, key=lambda p: p.relative_to(folder).as_posix())


def _scan(
    folder: Path,
    classes: tuple[str, ...],
    size: int,
    unreadable: Literal["refuse", "skip"],
    *,
    whole: bool = True,
) -> FileSet:
    """Return the files of a part; `whole` says that every class must have some."""
    places = {_class_of(p): p for p in _subfolders(folder)}
    strangers = sorted(places.keys() - set(classes))
    if strangers:
        raise InputError(
            f"{folder} has the class {strangers[0]!r}, which the training images do not: "
            f"expected only {', '.join(classes)}"
        )
    loose = [p for p in sorted(folder.iterdir()) if is_picture(p) and p.is_file()]
    loose = [p for p in loose if not p.name.startswith(".")]
    _left_out(folder, loose, "beside the folders of classes", ": put them into one")
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = image_files(places[name]) if name in places else []
        if not files and whole:
            raise InputError(
                f"class folder {places[name]} has no images (files such as .jpg or .png): add some or "
                "remove the folder"
            )
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise InputError(
            f"{folder} has no images: put those of each class into a subfolder of it, or remove it"
        )
    files = FileSet(tuple(paths), torch.tensor(labels, dtype=torch.int64), len(classes), size)
    return files if unreadable == "refuse" else _without_unreadable(files, folder, classes, whole)


def _without_unreadable(
    files: FileSet, folder: Path, classes: tuple[str, ...], whole: bool
) -> FileSet:
    bad = files.unreadable()
    if not bad:
        return files
    keep = torch.tensor([i for i in range(len(files)) if i not in bad], dtype=torch.int64)
    left = torch.bincount(files.labels[keep], minlength=len(classes))
    if not len(keep) or (whole and not bool(left.all())):
        name = classes[int((left == 0).nonzero()[0])]
        refuse([f"no image of class {name!r} in {folder} can be read", *bad.values()])
    reasons = few(bad.values(), 20, "; ")
    warnings.warn(f"left out {len(bad)} unreadable image(s): {reasons}", stacklevel=2)
    return files.subset(keep)
