"""The known graphs as their authors published them, read without trusting a pickle.

References:
    Yang et al., "Revisiting semi-supervised learning with graph embeddings", ICML 2016 (the
    Planetoid files of Cora, CiteSeer and PubMed, and their public split).
    Hu et al., "Open graph benchmark: datasets for machine learning on graphs", NeurIPS 2020.
"""

from __future__ import annotations

import gzip
import pickle
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regraft._geometric import geometric
from regraft.errors import InputError

PLANETOID = "https://github.com/kimiyoung/planetoid/raw/master/data"
OGB = "https://snap.stanford.edu/ogb/data/nodeproppred"

_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
_SPLITS = {"ogbn-arxiv": "time", "ogbn-products": "sales_ranking"}
_OGB_CLASSES = {"ogbn-arxiv": 40, "ogbn-products": 47}

# All that the published files are made of.
_HARMLESS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("scipy.sparse.csr", "csr_matrix"),
    ("scipy.sparse._csr", "csr_matrix"),
    ("collections", "defaultdict"),
    ("__builtin__", "list"),
    ("builtins", "list"),
    ("_codecs", "encode"),  # how Python 3 writes the bytes of an array for Python 2
}


class RawGraph(NamedTuple):
    """A graph as published: features, edges (source, target), classes, and the split's nodes."""

    x: Tensor
    edge_index: Tensor
    y: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor
    num_classes: int


def planetoid_files(name: str) -> tuple[str, ...]:
    """Return the eight files of a Planetoid set, relative to the data root."""
    return tuple(f"Planetoid/{name}/raw/ind.{name.lower()}.{part}" for part in _PARTS)


def ogb_files(name: str) -> tuple[str, ...]:
    """Return the files of an OGB node set that are read, relative to the data root."""
    folder = name.replace("-", "_")
    raw = [f"{folder}/raw/{part}.csv.gz" for part in ("edge", "node-feat", "node-label")]
    split = [f"{folder}/split/{_SPLITS[name]}/{p}.csv.gz" for p in ("train", "valid", "test")]
    return tuple(raw + split)


def read_planetoid(base: Path, name: str) -> RawGraph:
    """Read Cora, CiteSeer or PubMed with the public split, through PyTorch Geometric.

    The files are pickles. Each is first opened by a reader that knows nothing but NumPy arrays,
    SciPy matrices, lists and dicts; a file that asks for anything else is refused unopened.

    Raises:
        InputError: A file is damaged, or asks for more than data.
        MissingExtraError: PyTorch Geometric is not installed.
    """
    planetoid = geometric("io", f"the data set {name.lower()}")
    paths = [base / file for file in planetoid_files(name)]
    parts = {}
    try:
        for path in paths[:-1]:
            with path.open("rb") as file, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parts[path.suffix] = _DataOnly(file, encoding="latin1").load()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = planetoid.read_planetoid_data(str(paths[0].parent), name.lower())
        listed, stored = int(data.test_mask.sum()), parts[".tx"].shape[0]
        if listed != stored:
            raise InputError(f"test.index lists {listed} nodes and tx holds {stored}")
    # A damaged pickle can end in nearly any error.
    except Exception as error:
        raise _damaged(name.lower(), paths[0].parent, error) from error
    split = [data[f"{part}_mask"].nonzero().reshape(-1) for part in ("train", "val", "test")]
    classes = int(data.y.max()) + 1
    return RawGraph(data.x, data.edge_index, data.y, split[0], split[1], split[2], classes)


def read_ogb(base: Path, name: str) -> RawGraph:
    """Read ogbn-arxiv or ogbn-products from its CSV files, every edge in both directions.

    The `ogb` package is not used: it keeps what it has read in pickles, which current versions of
    torch refuse to load.

    Raises:
        InputError: A file is damaged.
        MissingExtraError: PyTorch Geometric is not installed.
    """
    utils = geometric("utils", f"the data set {name}")
    paths = [base / file for file in ogb_files(name)]
    try:
        edges = torch.from_numpy(_csv(paths[0], np.int64)).t().contiguous()
        x = torch.from_numpy(_csv(paths[1], np.float32))
        y, *split = (torch.from_numpy(_csv(path, np.int64)[:, 0]) for path in paths[2:])
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(name, paths[0].parent.parent, error) from error
    edges = utils.to_undirected(edges, num_nodes=len(x))
    parts = [part.sort().values for part in split]
    return RawGraph(x, edges, y.contiguous(), parts[0], parts[1], parts[2], _OGB_CLASSES[name])


class _DataOnly(pickle.Unpickler):
    """Refuses everything that data do not need, so that opening a file runs nobody's code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a harmless class, or refuse."""
        if (module, name) not in _HARMLESS:
            raise InputError(f"it asks for {module}.{name}, which is no data")
        return super().find_class(module, name)


def _csv(path: Path, dtype: type[np.generic]) -> np.ndarray:
    with gzip.open(path, "rt") as file:
        return np.loadtxt(file, dtype=dtype, delimiter=",", ndmin=2)


def _damaged(name: str, folder: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(
        f"the files of {name} in {folder} are damaged ({reason}): delete them and get them again "
        f"with `regraft data get {name}`"
    )
