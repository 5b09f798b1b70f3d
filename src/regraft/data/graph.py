"""One graph whose nodes are to be classified: splits, features, and all its nodes as one batch.

References:
    Kipf and Welling, "Semi-supervised classification with graph convolutional networks",
    ICLR 2017 (the transductive setting).
    Shchur et al., "Pitfalls of graph neural network evaluation", 2018 (random splits).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from regraft import streams
from regraft._shapes import Float, Int
from regraft.config import DataConfig
from regraft.errors import InputError

from .known import load_graph_files
from .split import per_class_subset, stratified_subset

_SPLITS = ("public", "full", "random")
_FEATURES = ("raw", "row", "l2")
_SHOTS, _VALIDATION, _TEST = 20, 500, 1000


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph with features and a class for every node, and the nodes of each split.

    Attributes:
        name: Name of the set.
        x: Features, float32 [n, f].
        edge_index: Edges as (source, target), int64 [2, e]; an undirected edge is there twice.
        y: Class of every node, int64 [n]; -1 for a node of no known class, which is in no split.
        train: Sorted nodes whose classes are trained on, int64.
        validation: Sorted nodes for choosing, int64.
        test: Sorted nodes for the final figure, int64.
        classes: Names of the classes.

    Raises:
        InputError: Tensors that do not fit each other, nodes out of range, or a split that has a
            node of no known class.
    """

    name: str
    x: Float[Tensor, "n f"]
    edge_index: Int[Tensor, "2 e"]
    y: Int[Tensor, " n"]
    train: Int[Tensor, " a"]
    validation: Int[Tensor, " b"]
    test: Int[Tensor, " c"]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.x.dtype != torch.float32:
            raise InputError(
                f"x of shape {tuple(self.x.shape)} and dtype {self.x.dtype}: expected float32 [n, f]"
            )
        n = len(self.x)
        if self.edge_index.ndim != 2 or len(self.edge_index) != 2:
            raise InputError(
                f"edge_index of shape {tuple(self.edge_index.shape)}: expected int64 [2, e]"
            )
        if self.y.shape != (n,):
            raise InputError(f"y of shape {tuple(self.y.shape)}: expected int64 [{n}]")
        limits = {"edge_index": n, "train": n, "validation": n, "test": n, "y": len(self.classes)}
        for part, limit in limits.items():
            values = getattr(self, part)
            if values.dtype != torch.int64:
                raise InputError(f"{part} has dtype {values.dtype}: expected int64")
            least = -1 if part == "y" else 0
            if values.numel() and not least <= int(values.min()) <= int(values.max()) < limit:
                raise InputError(
                    f"{part} holds values from {int(values.min())} to {int(values.max())}: expected "
                    f"{least} to {limit - 1}"
                )
        for part in ("train", "validation", "test"):
            nodes = getattr(self, part)
            unknown = nodes[self.y[nodes] < 0]
            if len(unknown):
                raise InputError(
                    f"{part} holds node {int(unknown[0])}, which has no known class: leave it out"
                )

    @property
    def has_label(self) -> Tensor:
        """Which nodes have a known class, bool [n]."""
        return self.y >= 0

    @property
    def num_nodes(self) -> int:
        """Number of nodes, n."""
        return len(self.x)

    @property
    def num_features(self) -> int:
        """Number of features of a node, f."""
        return self.x.shape[1]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


class NodeBatches:
    """All nodes of a split as the one batch of every epoch; follows `regraft.protocols.BatchSource`.

    Rank r of w takes nodes r, r + w, ... of the batch.

    Args:
        graph: The graph.
        split: `train`, `validation` or `test`.
        device: Where the nodes and classes are kept.

    Raises:
        InputError: The split has no nodes.
    """

    def __init__(
        self, graph: Graph, split: str, *, device: torch.device | str | None = None
    ) -> None:
        nodes: Tensor = getattr(graph, split)
        if not len(nodes):
            raise InputError(f"{graph.name} has no {split} nodes: choose another graph_split")
        self.nodes = nodes.to(device)
        self.labels = graph.y[nodes].to(device)

    def __len__(self) -> int:
        return 1

    def batches(
        self, epoch: int, *, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield (nodes int64 [b], classes int64 [b], number of nodes in the global batch), once."""
        if start == 0:
            yield self.nodes[rank::world], self.labels[rank::world], len(self.nodes)


def load_graph(config: DataConfig) -> Graph:
    """Load a known graph, split its nodes and prepare its features.

    Nodes of no known class, as the isolated ones of CiteSeer, are seen but in no split.

    Splits: `public` is the published one (20 labelled nodes a class in the Planetoid sets), `full`
    trains on every node outside its validation and test nodes, and `random` draws, with
    `split_seed`, `shots` nodes a class (20 by default) or `train_size` in proportion to train on,
    500 to validate and 1,000 to test. In the other splits `shots` and `train_size` keep so many of
    the training nodes.

    Features: `raw` as published; `row` x / sum(x), every row sums to one; `l2` x / ||x|| times
    sqrt(f / 2) / 3, which for f sparse features gives every unit of a Kaiming layer the same,
    moderate scale. Rows of zeros stay zero.

    Raises:
        InputError: An unknown set, split or kind of features, a missing or damaged file, options
            that are for images only, or more nodes asked than there are.
        MissingExtraError: PyTorch Geometric, which ogbn graphs are read with, is not installed.
    """
    _check(config)
    raw = load_graph_files(config.name, config.root, download=config.download)
    classes = tuple(str(k) for k in range(raw.num_classes))
    features = _prepared(raw.x, config)
    split = (raw.train, raw.validation, raw.test)
    graph = Graph(config.name, features, raw.edge_index, raw.y, *split, classes)
    if config.graph_split == "random":
        return _random_split(graph, config)
    if config.graph_split == "full":
        rest = graph.has_label
        rest[graph.validation] = rest[graph.test] = False
        graph = replace(graph, train=rest.nonzero().reshape(-1))
    if config.shots is None and config.train_size is None:
        return graph
    return replace(graph, train=_chosen(graph, graph.train, config))


def graph_fingerprint(graph: Graph) -> dict[str, Any]:
    """Return what tells whether a graph is still the one a run was started with."""
    digest = hashlib.blake2b(digest_size=8)
    for part in ("x", "edge_index", "y", "train", "validation", "test"):
        digest.update(getattr(graph, part).contiguous().numpy().data)
    sizes = {f"{part}_nodes": len(getattr(graph, part)) for part in ("train", "validation", "test")}
    counts = {"nodes": graph.num_nodes, "edges": graph.edge_index.shape[1]}
    return {"classes": graph.num_classes, **counts, **sizes, "digest": digest.hexdigest()}


def _check(config: DataConfig) -> None:
    for field, allowed in (("graph_split", _SPLITS), ("features", _FEATURES)):
        if getattr(config, field) not in allowed:
            raise InputError(
                f"{field}={getattr(config, field)!r}: expected one of {', '.join(allowed)}"
            )
    for field, default in (("augment", "none"), ("image_size", None)):
        if getattr(config, field) != default:
            raise InputError(
                f"{field}={getattr(config, field)!r} is for images and {config.name} is a graph: leave "
                f"it at {default!r}"
            )
    if config.train_size is not None and config.shots is not None:
        raise InputError(
            f"train_size={config.train_size} and shots={config.shots} exclude each other: give one"
        )


def _prepared(x: Tensor, config: DataConfig) -> Tensor:
    if config.features == "row":
        if bool((x < 0).any()):
            raise InputError(
                f"features='row' needs features that are nowhere negative, and those of {config.name} "
                "are not: take 'raw' or 'l2'"
            )
        total = x.sum(dim=1, keepdim=True, dtype=torch.float64).float()
        return x / total.where(total > 0, torch.ones(()))
    if config.features == "l2":
        # In float64, so that the float32 that comes out is the same on every machine.
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float64)
        length = length.where(length > 0, torch.ones(()).double())
        return x * (math.sqrt(x.shape[1] / 2) / 3 / length).float()
    return x


def _chosen(graph: Graph, nodes: Tensor, config: DataConfig, shots: int | None = None) -> Tensor:
    """Return `shots` of the nodes of every class, or `train_size` in proportion."""
    y = graph.y[nodes]
    counts = torch.bincount(y, minlength=graph.num_classes)
    few = int(counts.argmin())
    shots = shots if config.shots is None else config.shots
    if config.train_size is not None:
        if not graph.num_classes <= config.train_size <= len(nodes) or not int(counts[few]):
            raise InputError(
                f"train_size={config.train_size}: expected between {graph.num_classes} (one node a "
                f"class) and {len(nodes)} (all that {config.name} has to train on)"
            )
        return nodes[stratified_subset(y, config.train_size, config.split_seed)]
    if shots is None or not 1 <= shots <= int(counts[few]):
        raise InputError(
            f"shots={shots}: expected between 1 and {int(counts[few])}, all the nodes that class {few} "
            f"of {config.name} has to train on"
        )
    return nodes[per_class_subset(y, shots, config.split_seed)]


def _random_split(graph: Graph, config: DataConfig) -> Graph:
    train = _chosen(graph, graph.has_label.nonzero().reshape(-1), config, _SHOTS)
    order = streams.permutation(config.split_seed, "data/graph", 0, graph.num_nodes)
    rest = order[graph.has_label[order] & ~torch.isin(order, train)]
    if len(rest) < _VALIDATION + _TEST:
        raise InputError(
            f"graph_split='random' leaves {len(rest)} nodes of {config.name} and takes {_VALIDATION} to "
            f"validate and {_TEST} to test: lower shots or train_size"
        )
    validation = rest[:_VALIDATION].sort().values
    test = rest[_VALIDATION : _VALIDATION + _TEST].sort().values
    return replace(graph, train=train, validation=validation, test=test)
