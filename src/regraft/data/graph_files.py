"""The known graphs as their authors published them: tables, and pickles of which nothing is run.

Cora, CiteSeer and PubMed were published as pickles. They are read by `foreign_pickle`, which takes
nothing but numbers, lists and dicts from them: each file is read once, no class or function that it
names is imported, made or called, and every shape, type and index is checked before it is used.
Guaranteed is that a file, whoever wrote it, runs no code and makes no array point outside itself.
A file that asks for more time or memory than the published graphs need is refused. Not guaranteed is
that its graph is the published one, for no checksums are compared.

References:
    Yang et al., "Revisiting semi-supervised learning with graph embeddings", ICML 2016 (the
    Planetoid files of Cora, CiteSeer and PubMed, and their public split).
    Hu et al., "Open graph benchmark: datasets for machine learning on graphs", NeurIPS 2020.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regraft._geometric import geometric
from regraft.errors import InputError

from .foreign_pickle import MOST_BYTES, matrix_of, unpickled

PLANETOID = "https://github.com/kimiyoung/planetoid/raw/master/data"
OGB = "https://snap.stanford.edu/ogb/data/nodeproppred"

_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
_SPLITS = {"ogbn-arxiv": "time", "ogbn-products": "sales_ranking"}
_OGB_CLASSES = {"ogbn-arxiv": 40, "ogbn-products": 47}

# More values than any of the three pickled graphs has features (CiteSeer, 12 million), and more edges.
_MOST = 1 << 25
_MOST_EDGES = 1 << 21
_VALIDATION = 500


class RawGraph(NamedTuple):
    """A graph as published: features, edges (source, target), classes, and the split's nodes.

    A node of no known class has class -1.
    """

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
    """Read Cora, CiteSeer or PubMed with the public split.

    Row i of `allx` and `ally` is node i, row i of `tx` and `ty` is the node in line i of
    `test.index`. The nodes between that `test.index` of CiteSeer leaves out have no features and
    no class. An edge is there once in each direction, sorted by target, and never from a node to
    itself, as in PyTorch Geometric.

    Raises:
        InputError: A file is damaged, or asks for more than data.
    """
    paths = [base / file for file in planetoid_files(name)]
    try:
        for path in paths:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"{path.name} has more than {MOST_BYTES} bytes")
        parts = {path.suffix[1:]: unpickled(path.read_bytes()) for path in paths[:-1]}
        listed = [int(word) for word in paths[-1].read_text("ascii").split()]
        return _planetoid(parts, listed, gaps=name == "CiteSeer")
    # A damaged pickle can end in nearly any error.
    except Exception as error:
        raise _damaged(name.lower(), paths[0].parent, base, error) from error


def _planetoid(parts: dict[str, Any], listed: list[int], *, gaps: bool) -> RawGraph:
    x, y = (
        [matrix_of(parts[part], _MOST) for part in names]
        for names in (("allx", "tx", "x"), ("ally", "ty", "y"))
    )
    for kind, values in (("features", x), ("classes", y)):
        if len({part.shape[1] for part in values}) > 1:
            raise ValueError(f"its parts have different numbers of {kind}")
    if [len(part) for part in x] != [len(part) for part in y]:
        raise ValueError("it has features and classes of different numbers of nodes")
    known, tested, training = (len(part) for part in y)
    if len(listed) != tested or len(set(listed)) != tested:
        raise ValueError(f"test.index lists {len(set(listed))} nodes and tx holds {tested}")
    n = max(listed, default=known - 1) + 1
    if tested and (min(listed) < known or (n > known + tested and not gaps)):
        raise ValueError(f"test.index lists nodes other than the {tested} from {known} on")
    if training + _VALIDATION > known or not y[0].shape[1] or n * max(1, x[0].shape[1]) > _MOST:
        raise ValueError(f"it has {n} nodes, {known} of them outside the test nodes")
    test = torch.tensor(listed, dtype=torch.int64)
    features, classes = torch.zeros(n, x[0].shape[1]), torch.full((n,), -1)
    for rows, at in ((slice(known), 0), (test, 1)):
        features[rows] = torch.from_numpy(x[at])
        classes[rows] = torch.from_numpy(_classes(y[at]))
    nodes = torch.arange(training + _VALIDATION)
    split = (nodes[:training], nodes[training:], test.sort().values)
    # A node of no class can be neither learnt from nor tested on.
    train, validation, test = (part[classes[part] >= 0] for part in split)
    edges = _edges(parts["graph"], n)
    return RawGraph(features, edges, classes, train, validation, test, int(classes.max()) + 1)


def _classes(one_hot: np.ndarray) -> np.ndarray:
    """Return the column of the one in every row, -1 for a row of zeros."""
    if not np.isin(one_hot, (0, 1)).all() or (one_hot.sum(1) > 1).any():
        raise ValueError("its classes are not written as ones and zeros, one class a node")
    return np.where(one_hot.any(1), one_hot.argmax(1), -1)


def _edges(near: object, n: int) -> Tensor:
    """Return the edges of lists of neighbours, int64 [2, e]: distinct, no loops, by target."""
    if not isinstance(near, dict) or any(type(nodes) is not list for nodes in near.values()):
        raise ValueError("its edges are no lists of neighbours")
    # One list may stand behind many nodes, so that a small file names any number of edges.
    if sum(map(len, near.values())) > _MOST_EDGES:
        raise ValueError(f"it names more than {_MOST_EDGES} edges")
    sources = [i for i, nodes in near.items() for _ in nodes]
    targets = [j for nodes in near.values() for j in nodes]
    if any(type(i) is not int or not 0 <= i < n for i in (*near, *targets)):
        raise ValueError(f"its edges name other nodes than 0 to {n - 1}")
    pairs = np.array([targets, sources], dtype=np.int64)
    pairs = np.unique(pairs[:, pairs[0] != pairs[1]], axis=1)
    return torch.from_numpy(pairs[::-1].copy())


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
        raise _damaged(name, paths[0].parent.parent, base, error) from error
    edges = utils.to_undirected(edges, num_nodes=len(x))
    parts = [part.sort().values for part in split]
    return RawGraph(x, edges, y.contiguous(), parts[0], parts[1], parts[2], _OGB_CLASSES[name])


def _csv(path: Path, dtype: type[np.generic]) -> np.ndarray:
    with gzip.open(path, "rt") as file:
        return np.loadtxt(file, dtype=dtype, delimiter=",", ndmin=2)


def _damaged(name: str, folder: Path, base: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(
        f"the files of {name} in {folder} are damaged ({reason}): delete them and run `regraft data "
        f"get {name} --data-root {base}`"
    )
