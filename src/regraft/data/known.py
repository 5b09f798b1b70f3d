"""The data sets known by name: where they lie, how they are read, how they are fetched."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft._extras import optional
from regraft.errors import InputError, MissingExtraError
from regraft.machine import cache_folder, expanded

from .graph_files import (
    OGB,
    PLANETOID,
    RawGraph,
    ogb_files,
    planetoid_files,
    read_ogb,
    read_planetoid,
)
from .images import ImageSet
from .jpeg import read_cifar10_jpeg
from .omniglot import FILES, read_omniglot
from .split import stratified_split

_Torchvision = tuple[str, Mapping[str, str]]


@dataclass(frozen=True)
class Known:
    """Training and test images of a known set, before any split."""

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]


@dataclass(frozen=True)
class GraphSource:
    """How a graph is read, and where its files, or one archive of them, are fetched."""

    read: Callable[[Path], RawGraph]
    url: str

    def fetch(self, files: tuple[str, ...], folder: Path) -> None:
        """Fetch the files into `folder`, laid out as below the data root."""
        if self.url.endswith(".zip"):
            archive = _fetch_url(self.url, folder / "archive.zip")
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(folder)
            archive.unlink()
            # The archive names its folder without the prefix that the folder has below a root.
            (folder / Path(self.url).stem).rename(folder / files[0].split("/")[0])
            return
        for file in files:
            _fetch_url(f"{self.url}/{Path(file).name}", folder / file)


@dataclass(frozen=True)
class KnownSet:
    """One entry of the registry.

    `files` are what must be there, relative to the data root. `source` is a torchvision class and
    its arguments for the sets that torchvision reads and fetches, a `GraphSource` for graphs, and
    a function of the root for the others.
    """

    files: tuple[str, ...]
    source: _Torchvision | GraphSource | Callable[[Path], tuple[Any, ...]]

    @property
    def folder(self) -> str | None:
        """Folder below the data root; None for a set that ships inside a package."""
        if isinstance(self.source, GraphSource):
            return self.files[0].partition("/raw/")[0]
        return self.files[0].split("/")[0] if self.files else None


@dataclass(frozen=True)
class Listing:
    """Where a known set is expected and whether it is there."""

    name: str
    present: bool
    folder: Path | None


def data_root(root: str | None = None) -> Path:
    """Return the folder of the known sets: `root`, else REGRAFT_DATA, else the user's cache."""
    chosen = root or os.environ.get("REGRAFT_DATA")
    return expanded(chosen) if chosen else cache_folder() / "data"


def known_names() -> tuple[str, ...]:
    """Return the names of the known sets, sorted."""
    return tuple(sorted(_KNOWN))


def graph_names() -> tuple[str, ...]:
    """Return the names of the known sets that are graphs, sorted."""
    return tuple(sorted(n for n, entry in _KNOWN.items() if isinstance(entry.source, GraphSource)))


def available(root: str | None = None) -> list[Listing]:
    """List every known set, whether it is present, and its folder (None inside a package)."""
    base = data_root(root)
    return [
        Listing(name, _present(entry, base), base / entry.folder if entry.folder else None)
        for name, entry in sorted(_KNOWN.items())
    ]


def get(name: str, root: str | None = None) -> None:
    """Fetch a known set into the data root, unless it is there already.

    Files are moved in when they are complete, so a broken download leaves nothing behind.

    Raises:
        InputError: An unknown name, a set that has no public download, or a download that failed.
        MissingExtraError: torchvision is not installed.
    """
    entry, base = _entry(name), data_root(root)
    if _present(entry, base) or not entry.files:
        return
    if not isinstance(entry.source, tuple | GraphSource):
        raise InputError(
            f"{name} has no download: put its files under {base / str(entry.folder)} yourself"
        )
    fetch = _fetcher(entry.source, entry.files)
    try:
        base.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=base, prefix=".download-") as scratch,
            contextlib.redirect_stdout(sys.stderr),
        ):
            fetch(Path(scratch))
            for file in sorted(f for f in Path(scratch).rglob("*") if f.is_file()):
                target = base / file.relative_to(scratch)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} could not be downloaded to {base} ({reason})") from error


def load_known(name: str, root: str | None = None, *, download: bool = True) -> Known:
    """Read a known set, fetching it first where that is wanted and possible.

    Args:
        name: One of `known_names()`.
        root: Data root; see `data_root`.
        download: Fetch the set when it is missing.

    Raises:
        InputError: An unknown name, or a set that is missing or damaged; the message names the
            folder and the command that gets it.
        MissingExtraError: The package that reads or holds the set is not installed.
    """
    entry, base = _entry(name), data_root(root)
    if isinstance(entry.source, GraphSource):
        raise InputError(f"{name} is a graph and no set of images: load it with load_graph")
    if not _present(entry, base):
        _fetch(name, entry, base, root, download)
    if isinstance(entry.source, tuple):
        *parts, classes = _read_torchvision(name, entry.source, base / str(entry.folder))
    else:
        *parts, classes = entry.source(base)
    (x, y), (x_test, y_test) = parts
    return Known(
        ImageSet(x, y, len(classes)), ImageSet(x_test, y_test, len(classes)), tuple(classes)
    )


def load_graph_files(name: str, root: str | None = None, *, download: bool = True) -> RawGraph:
    """Read a known graph as published, fetching it first where that is wanted and possible.

    Args:
        name: One of `graph_names()`.
        root: Data root; see `data_root`.
        download: Fetch the files when they are missing.

    Raises:
        InputError: An unknown name, or files that are missing or damaged; the message names the
            folder and the command that gets them.
        MissingExtraError: PyTorch Geometric is not installed.
    """
    source = _KNOWN[name].source if name in _KNOWN else None
    if not isinstance(source, GraphSource):
        raise InputError(f"{name!r} is no known graph: expected one of {', '.join(graph_names())}")
    entry, base = _KNOWN[name], data_root(root)
    if not _present(entry, base):
        _fetch(name, entry, base, root, download)
    return source.read(base)


def _entry(name: str) -> KnownSet:
    if name not in _KNOWN:
        raise InputError(f"{name!r} is no known data set: expected one of {', '.join(_KNOWN)}")
    return _KNOWN[name]


def _present(entry: KnownSet, base: Path) -> bool:
    if not entry.files:
        return importlib.util.find_spec("sklearn") is not None
    return all((base / file).exists() for file in entry.files)


def _fetch(name: str, entry: KnownSet, base: Path, root: str | None, download: bool) -> None:
    if not entry.files:
        raise MissingExtraError("scikit-learn", "digits", f"the data set {name}")
    looked = f"{name} is not in {base / str(entry.folder)}"
    if not isinstance(entry.source, tuple | GraphSource):
        raise InputError(
            f"{looked} and has no download: put its files there, or name another data root"
        )
    cure = f"regraft data get {name} --data-root {base}"
    if not download:
        raise InputError(f"{looked} and data.download is off: get it with `{cure}`")
    try:
        get(name, root)
    except InputError as error:
        raise InputError(f"{looked} and {error}: get it with `{cure}`") from error


def _fetcher(
    source: _Torchvision | GraphSource, files: tuple[str, ...]
) -> Callable[[Path], object]:
    """Return what fetches a set into a folder."""
    if isinstance(source, GraphSource):
        return partial(source.fetch, files)
    cls, arguments = _torchvision_class(source)
    return partial(cls, train=True, download=True, **arguments)


def _fetch_url(url: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as file:
        shutil.copyfileobj(answer, file)
    return target


def _torchvision_class(source: _Torchvision) -> tuple[Any, Mapping[str, str]]:
    cls, arguments = source
    datasets = optional("torchvision.datasets", "torchvision", "vision", f"the data set {cls}")
    return getattr(datasets, cls), arguments


def _read_torchvision(name: str, source: _Torchvision, folder: Path) -> tuple[Any, ...]:
    cls, arguments = _torchvision_class(source)
    try:
        # torchvision checks CIFAR's pickled files against known MD5 sums before it opens them.
        sets = [
            cls(folder.parent, train=train, download=False, **arguments) for train in (True, False)
        ]
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            f"the files of {name} in {folder} are damaged ({error}): "
            f"delete them and run `regraft data get {name} --data-root {folder.parent}`"
        ) from error
    parts = []
    for data in sets:
        images, labels = torch.as_tensor(data.data), torch.as_tensor(data.targets).long()
        if cls.__name__ == "EMNIST":
            # Stored transposed in the original.
            images = images.transpose(1, 2)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        parts.append((images.contiguous(), labels))
    classes = tuple(sets[0].classes)
    if classes[0] == "N/A":
        # The letters are numbered from 1.
        classes = classes[1:]
        parts = [(images, labels - 1) for images, labels in parts]
    return *parts, classes


def _read_digits(base: Path) -> tuple[Any, ...]:
    """Read scikit-learn's 1,797 digits (8x8, 17 grey levels); a fifth of them is the test set."""
    del base
    data = importlib.import_module("sklearn.datasets").load_digits()
    levels = torch.from_numpy(data.images).round().to(torch.int64)
    images = ((levels * 255 + 8) // 16).to(torch.uint8)[:, None]
    labels: Tensor = torch.from_numpy(data.target).long()
    train, test = stratified_split(labels, 0.2, 777)
    classes = tuple(str(digit) for digit in range(10))
    return (images[train], labels[train]), (images[test], labels[test]), classes


def _mnist(cls: str) -> KnownSet:
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return KnownSet(tuple(f"{cls}/raw/{n}-ubyte" for n in names), (cls, {}))


def _emnist(split: str) -> KnownSet:
    names = ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1")
    files = tuple(f"EMNIST/raw/emnist-{split}-{n}-ubyte" for n in names)
    return KnownSet(files, ("EMNIST", {"split": split}))


def _planetoid(name: str) -> KnownSet:
    return KnownSet(
        planetoid_files(name), GraphSource(partial(read_planetoid, name=name), PLANETOID)
    )


def _ogb(name: str) -> KnownSet:
    url = f"{OGB}/{name.removeprefix('ogbn-')}.zip"
    return KnownSet(ogb_files(name), GraphSource(partial(read_ogb, name=name), url))


_KNOWN: dict[str, KnownSet] = {
    "digits": KnownSet((), _read_digits),
    "mnist": _mnist("MNIST"),
    "fashion_mnist": _mnist("FashionMNIST"),
    "kmnist": _mnist("KMNIST"),
    "emnist": _emnist("letters"),
    "emnist_digits": _emnist("digits"),
    "emnist_balanced": _emnist("balanced"),
    "cifar10": KnownSet(("cifar-10-batches-py",), ("CIFAR10", {})),
    "cifar100": KnownSet(("cifar-100-python",), ("CIFAR100", {})),
    "cifar10_jpeg": KnownSet(("cifar10/train", "cifar10/test"), read_cifar10_jpeg),
    **{name: KnownSet((file,), partial(read_omniglot, name=name)) for name, file in FILES.items()},
    "cora": _planetoid("Cora"),
    "citeseer": _planetoid("CiteSeer"),
    "pubmed": _planetoid("PubMed"),
    "ogbn-arxiv": _ogb("ogbn-arxiv"),
    "ogbn-products": _ogb("ogbn-products"),
}
