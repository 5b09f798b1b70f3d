"""A user's folder of images: one subfolder a class, with or without train/val/test above them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from regraft.errors import InputError

from .lazy import FileSet, refuse

_EXTENSIONS = frozenset(
    (
        ".bmp",
        ".gif",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    )
)
_VALIDATION = ("val", "valid", "validation")


@dataclass(frozen=True, eq=False)
class Folder:
    """The image files of a folder; `validation` and `test` are None where it has no such part."""

    train: FileSet
    validation: FileSet | None
    test: FileSet | None
    classes: tuple[str, ...]


def scan_folder(
    path: str | Path, *, image_size: int = 224, unreadable: Literal["refuse", "skip"] = "refuse"
) -> Folder:
    """Find the images of a folder and their classes, without keeping any image in memory.

    The layout is PATH/CLASS/IMAGE, or PATH/{train,val,test}/CLASS/IMAGE, of which only `train` is
    needed. Images may lie in folders below their class. Classes and images are sorted by name.

    Args:
        path: The folder.
        image_size: Side in pixels to which images are brought.
        unreadable: With `skip`, every image is decoded once to leave out, with a warning, those
            that cannot be; with `refuse`, decoding such an image later raises and names it.

    Raises:
        InputError: A missing folder, no class folders, a single class, classes whose names differ
            in case only, a class without images, or a class in `val` or `test` that `train` does
            not have.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise InputError(f"data folder {root} {what}: expected a folder with one subfolder a class")
    if image_size < 1:
        raise InputError(f"image_size={image_size}: expected at least 1 pixel")
    train = root / "train"
    if not (train.is_dir() and _subfolders(train)):
        classes = _class_names(root)
        return Folder(_scan(root, classes, image_size, unreadable), None, None, classes)
    classes = _class_names(train)
    parts = {
        part: _scan(folder, classes, image_size, unreadable)
        for part, names in (("train", ("train",)), ("val", _VALIDATION), ("test", ("test",)))
        if (folder := _first(root, names)) is not None
    }
    return Folder(parts["train"], parts.get("val"), parts.get("test"), classes)


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _subfolders(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(found, key=lambda p: p.name)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(p.name for p in _subfolders(folder))
    if not names:
        raise InputError(
            f"{folder} has no class folders: put the images of each class into a subfolder of it"
        )
    if len(names) == 1:
        raise InputError(
            f"{folder} has a single class, {names[0]!r}: a classifier needs at least two, "
            "each in a subfolder of its own"
        )
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(name.casefold(), name)
        if other != name:
            raise InputError(
                f"{folder} has the classes {other!r} and {name!r}, which only differ in case and are "
                "one folder on some systems: merge them or rename one"
            )
    return names


def image_files(folder: Path) -> list[Path]:
    """Return the image files below a folder, hidden ones left out, sorted by their place."""
    found = [
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in _EXTENSIONS
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
        and p.is_file()
    ]
    return sorted(found, key=lambda p: p.relative_to(folder).as_posix())


def _scan(
    folder: Path, classes: tuple[str, ...], size: int, unreadable: Literal["refuse", "skip"]
) -> FileSet:
    strangers = [p.name for p in _subfolders(folder) if p.name not in classes]
    if strangers:
        raise InputError(
            f"{folder} has the class {strangers[0]!r}, which the training images do not: "
            f"expected only {', '.join(classes)}"
        )
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = image_files(folder / name) if (folder / name).is_dir() else []
        if not found:
            raise InputError(
                f"class folder {folder / name} has no images "
                f"({', '.join(sorted(_EXTENSIONS))}): add some or remove the folder"
            )
        paths += found
        labels += [label] * len(found)
    files = FileSet(tuple(paths), torch.tensor(labels, dtype=torch.int64), len(classes), size)
    return files if unreadable == "refuse" else _without_unreadable(files, folder, classes)


def _without_unreadable(files: FileSet, folder: Path, classes: tuple[str, ...]) -> FileSet:
    bad = files.unreadable()
    if not bad:
        return files
    keep = torch.tensor([i for i in range(len(files)) if i not in bad], dtype=torch.int64)
    left = torch.bincount(files.labels[keep], minlength=len(classes))
    if not bool(left.all()):
        name = classes[int((left == 0).nonzero()[0])]
        refuse([f"no image of class {name!r} in {folder} can be read", *bad.values()])
    listed = "; ".join(list(bad.values())[:20]) + ("; ..." if len(bad) > 20 else "")
    warnings.warn(f"left out {len(bad)} unreadable image(s): {listed}", stacklevel=2)
    return files.subset(keep)
