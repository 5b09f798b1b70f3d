"""What a ticket says of pictures, of a data set, or of the nodes of a graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.config import DataConfig
from regraft.data import graph_names, load_graph
from regraft.errors import InputError
from regraft.jobs.predict.labelled_images import labelled_images
from regraft.jobs.predict.network import facts_of, network_of
from regraft.jobs.predict.pictures import Preparation, decoded
from regraft.jobs.predict.used_images import Seen
from regraft.models import Transductive
from regraft.tickets import load_ticket

_INT = "a whole number or null"
_SPLIT = {"graph_split": "text", "split_seed": "a whole number", "train_size": _INT, "shots": _INT}
_TYPES = {"text": (str,), "a whole number": (int,), _INT: (int, type(None))}


@dataclass(frozen=True, eq=False)
class Classified:
    """What a ticket says of labelled examples.

    Attributes:
        data: Name of the data set.
        split: The part that the accuracy is of.
        kind: What an example is: `image` or `node`.
        labels: The true classes of all examples, int64 [n], -1 where there is none.
        predicted: The classes predicted, int64 [n].
        measured: Rows that the accuracy is of.
        classes: Names of the classes.
        note: What has to be said of the choice of rows.
    """

    data: str
    split: str
    kind: str
    labels: Tensor
    predicted: Tensor
    measured: Tensor
    classes: list[str]
    note: str = ""

    @property
    def accuracy(self) -> float:
        """Accuracy on the measured rows, in percent."""
        right = (self.predicted == self.labels)[self.measured]
        return 100.0 * right.double().mean().item()

    def rows(self) -> list[list[str]]:
        """Return number, class and prediction of every example, below their headings."""
        pairs = zip(self.labels.tolist(), self.predicted.tolist(), strict=True)
        names = self.classes
        # A node may have no known class.
        lines = [[str(i), names[y] if y >= 0 else "", names[p]] for i, (y, p) in enumerate(pairs)]
        return [[self.kind, "class", "prediction"], *lines]


class TicketClassifier:
    """A ticket's network, rebuilt from its seed.

    Args:
        path: The ticket file, or the run folder that holds it.
        model: Build this network instead of the ticket's own.
        device: Where to compute.

    Raises:
        InputError: It is no ticket, or does not say what it is of.
    """

    def __init__(self, path: Path, *, model: str | None = None, device: torch.device) -> None:
        self.path = path
        self._ticket = load_ticket(path)
        facts_of(self._ticket, path)
        self._model, self._device = model, device
        self.about: dict[str, Any] = self._ticket.about

    @property
    def of_graph(self) -> bool:
        """Whether it classifies the nodes of a graph."""
        return bool(self.about["input"].get("graph"))

    def pictures(self, paths: list[Path], left: dict[Path, str] | None = None) -> Tensor:
        """Return class probabilities [n, K] of image files, without those put into `left`: see `decoded`.

        Raises:
            InputError: A file is no image, or the ticket is for a graph.
        """
        if self.of_graph:
            raise self._wants_graph()
        shape = self.about["input"]
        size, channels = shape["image_size"], shape["channels"]
        return self._predict(decoded(paths, channels, size, unreadable=left))

    def measure(self, data: DataConfig, *, all_images: bool = False) -> Classified:
        """Classify a data set: its test images, or those of a folder, or all nodes of a graph.

        Args:
            data: The data set.
            all_images: Whether those of a folder are measured on that the ticket's run lists for
                training or validation.

        Raises:
            InputError: Data that cannot be loaded, or that the ticket is not for.
        """
        if self.of_graph:
            return self._nodes(data)
        images = labelled_images(
            self._ticket, self.path, data.name, data.root,
            download=data.download, unreadable=data.unreadable,
            trained_on=None if all_images else Seen.of(self.path),
        )  # fmt: skip
        predicted = self._predict(images.pixels(500)).argmax(1)
        everything = torch.arange(len(predicted))
        return Classified(
            images.name, images.split, "image", images.labels, predicted, everything,
            self.about["classes"], images.note,
        )  # fmt: skip

    def _predict(self, pixels: Iterable[Tensor]) -> Tensor:
        preparation = Preparation.of(self._ticket, self.path)
        network = network_of(self._ticket, self.path, self._model).to(self._device)
        with torch.inference_mode():
            outputs = [network(preparation.normalised(x).to(self._device)) for x in pixels]
            return torch.cat([y.float().softmax(1).cpu() for y in outputs])

    def _nodes(self, data: DataConfig) -> Classified:
        """Classify the graph that the ticket was found on, or another with its features."""
        if data.name not in graph_names():
            raise self._wants_graph()
        about = self.about
        features, split = _preparation(about, self.path)
        own = split if data.name == about.get("data") else {}
        config = DataConfig(
            name=data.name, root=data.root, download=data.download, features=features, **own
        )
        graph = load_graph(config)
        have = (graph.num_features, graph.num_classes)
        want = (about["input"].get("features"), len(about["classes"]))
        if have != want:
            raise InputError(
                f"{data.name} has {have[0]} features a node and {have[1]} classes, {self.path} is for "
                f"{want[0]} and {want[1]}: give the graph it was found on"
            )
        network = network_of(self._ticket, self.path, self._model)
        whole = Transductive(network, graph).to(self._device).eval()
        with torch.inference_mode():
            nodes = torch.arange(graph.num_nodes, device=self._device)
            predicted = whole(nodes).float().softmax(1).argmax(1).cpu()
        return Classified(
            data.name, "test", "node", graph.y, predicted, graph.test, about["classes"]
        )

    def _wants_graph(self) -> InputError:
        return InputError(
            f"{self.path} classifies the nodes of a graph: give one with --data, one of "
            f"{', '.join(graph_names())}"
        )


def _preparation(about: dict[str, Any], path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the kind of features and the split that a graph's ticket names, types checked."""
    split = about.get("split", {})
    if not isinstance(split, dict):
        raise InputError(
            f"{path} has split={_short(split)}: expected an object; find or pack the ticket again"
        )
    said = {key: split[key] for key in _SPLIT if key in split}
    kinds = {**_SPLIT, "features": "text"}
    for key, value in {"features": about.get("features", "raw"), **said}.items():
        if type(value) not in _TYPES[kinds[key]]:
            raise InputError(
                f"{path} has {key}={_short(value)}: expected {kinds[key]}; find or pack the ticket again"
            )
    return about.get("features", "raw"), said


def _short(value: Any) -> str:
    return repr(value)[:60]
