"""Small graphs the tests share, in memory and as Planetoid's files."""

import gzip
import pickle
from collections import defaultdict

import numpy as np
import scipy.sparse as sp
import torch

from regraft.data import Graph
from regraft.models import GAT, GCN, GIN

KINDS = {"gcn": GCN, "gin": GIN, "gat": GAT}
LABELLED = 30
LARGE = {"nodes": 1700, "test": 100}


def cycle(nodes=12, features=6, classes=3, seed=0):
    """A ring with chords whose classes follow from the features; all nodes are in some split."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(nodes, features, generator=generator)
    y = torch.arange(nodes) % classes
    x[torch.arange(nodes), y] += 1
    ring = torch.arange(nodes)
    forward = torch.cat([torch.stack([ring, (ring + step) % nodes]) for step in (1, 3)], dim=1)
    edges = torch.cat([forward, forward.flip(0)], dim=1)
    third = nodes // 3
    names = tuple(str(k) for k in range(classes))
    return Graph(
        "cycle", x, edges, y, ring[:third], ring[third : 2 * third], ring[2 * third :], names
    )


def write_planetoid(root, name="Cora", nodes=600, test=40, features=30, classes=3, seed=0):
    """Write the eight files of a Planetoid set below `root` and return what is in them.

    Classes go round by the node's number; a node's features tell its class and its number.
    """
    chance = np.random.default_rng(seed)
    y = np.arange(nodes) % classes
    x = (chance.random((nodes, features)) < 0.1).astype(np.float32)
    x[np.arange(nodes), y] = 1
    graph = defaultdict(list)
    for i in range(nodes):
        graph[i] += [int(j) for j in ((i + classes) % nodes, chance.integers(nodes), i)]
    for i in range(nodes):
        for j in list(graph[i]):
            graph[j].append(i)
    rest = nodes - test
    order = chance.permutation(np.arange(rest, nodes))
    one_hot = np.eye(classes, dtype=np.int32)[y]
    parts = {
        "x": sp.csr_matrix(x[:LABELLED]),
        "tx": sp.csr_matrix(x[order]),
        "allx": sp.csr_matrix(x[:rest]),
        "y": one_hot[:LABELLED],
        "ty": one_hot[order],
        "ally": one_hot[:rest],
        "graph": graph,
    }
    folder = root / "Planetoid" / name / "raw"
    folder.mkdir(parents=True)
    for part, value in parts.items():
        (folder / f"ind.{name.lower()}.{part}").write_bytes(pickle.dumps(value, protocol=2))
    text = "".join(f"{i}\n" for i in order)
    (folder / f"ind.{name.lower()}.test.index").write_text(text)
    edges = {(i, j) for i, near in graph.items() for j in near if i != j}
    return x, y, edges


def write_ogb(root, name="ogbn_arxiv", split="time"):
    """Write the tables of a set of the Open Graph Benchmark of four nodes below `root`."""
    tables = {
        "raw/edge": "0,1\n1,2\n2,1\n3,0\n",
        "raw/node-feat": "0.5,-1\n1,2\n3,4\n0,0.25\n",
        "raw/node-label": "3\n0\n39\n7\n",
        f"split/{split}/train": "2\n0\n",
        f"split/{split}/valid": "1\n",
        f"split/{split}/test": "3\n",
    }
    for part, text in tables.items():
        file = root / name / f"{part}.csv.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(text.encode()))
