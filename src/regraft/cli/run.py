"""`regraft ticket run`: what a ticket predicts, for images, a data set or a graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from regraft.jobs.predict.labelled import labelled
from regraft.jobs.predict.network import facts_of, network_of
from regraft.jobs.predict.pictures import Preparation, decoded, files_of
from regraft.jobs.predict.predictions import as_csv, best, csv_text, headings

from .output import print_json, say, table

_INT = "a whole number or null"
_SPLIT = {"graph_split": "text", "split_seed": "a whole number", "train_size": _INT, "shots": _INT}
_TYPES = {"text": (str,), "a whole number": (int,), _INT: (int, type(None))}


@dataclass(frozen=True, kw_only=True)
class Run:
    """Predict with a ticket: classes of images, or the accuracy on a data set's test split.

    The network is rebuilt from the seed; nothing is trained.
    """

    ticket: Annotated[Path, tyro.conf.Positional]
    """The ticket file, or the run folder that holds it."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Image files, and folders of them."""
    data: str | None = None
    """Instead of images: a known data set, a graph, or a folder with a subfolder for each class."""
    top: int = 3
    """How many classes to name for each image."""
    out: Path | None = None
    """Write the predictions to this CSV file as well."""
    model: str | None = None
    """Build this network instead of the ticket's own: a name or package.module:factory."""
    data_root: str | None = None
    """Folder of the known data sets; without it REGRAFT_DATA, then ~/.cache/regraft/data."""
    offline: bool = False
    """Stop at a missing known set instead of fetching it."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """--data: stop at an image that cannot be decoded, or warn and go on."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """CPU threads."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> int:
        """Load the ticket, predict, tell."""
        import torch

        from regraft.errors import InputError
        from regraft.tickets import load_ticket

        if bool(self.images) == (self.data is not None):
            raise InputError(
                "images: name image files or folders, or give --data, and only one of the two"
            )
        for name in ("top", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}: expected at least 1")
        if self.accelerator == "cuda" and not torch.cuda.is_available():
            raise InputError("accelerator='cuda': no GPU is available here; use cpu or auto")
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        ticket = load_ticket(self.ticket)
        facts_of(ticket, self.ticket)
        return self._graph(ticket) if ticket.about["input"].get("graph") else self._images(ticket)

    def _images(self, ticket: Any) -> int:
        about, shape = Preparation.of(ticket, self.ticket), ticket.about["input"]
        if self.data is not None:
            given = labelled(
                ticket,
                self.ticket,
                self.data,
                self.data_root,
                download=not self.offline,
                unreadable=self.unreadable,
            )
            probabilities = self._predict(ticket, map(about.normalised, given.pixels(500)))
            columns = ["image", "class", "prediction"]
            return self._tell_accuracy(
                ticket, given.name, given.split, probabilities, given.labels, columns
            )
        paths = files_of(self.images)
        pixels = decoded(paths, shape["channels"], shape["image_size"])
        probabilities = self._predict(ticket, map(about.normalised, pixels))
        return self._tell_images(ticket, paths, probabilities)

    def _graph(self, ticket: Any) -> int:
        """Classify all nodes of the graph a ticket was found on, or of another with its features."""
        import torch

        from regraft.config import DataConfig
        from regraft.data import graph_names, load_graph
        from regraft.errors import InputError
        from regraft.models import Transductive

        if self.data is None or self.data not in graph_names():
            raise InputError(
                f"{self.ticket} classifies the nodes of a graph: give one with --data, one of "
                f"{', '.join(graph_names())}"
            )
        about = ticket.about
        features, split = _preparation(about, self.ticket)
        config = DataConfig(
            name=self.data,
            root=self.data_root,
            download=not self.offline,
            features=features,
            **(split if self.data == about.get("data") else {}),
        )
        graph = load_graph(config)
        have = (graph.num_features, graph.num_classes)
        want = (about["input"].get("features"), len(about["classes"]))
        if have != want:
            raise InputError(
                f"{self.data} has {have[0]} features a node and {have[1]} classes, {self.ticket} is for "
                f"{want[0]} and {want[1]}: give the graph it was found on"
            )
        network = network_of(ticket, self.ticket, self.model)
        whole = Transductive(network, graph).to(self._device()).eval()
        with torch.inference_mode():
            nodes = torch.arange(graph.num_nodes, device=self._device())
            probabilities = whole(nodes).float().softmax(1).cpu()
        return self._tell_accuracy(
            ticket, self.data, "test", probabilities, graph.y, ["node", "class", "prediction"], graph.test
        )  # fmt: skip

    def _device(self) -> Any:
        import torch

        gpu = self.accelerator != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if gpu else "cpu")

    def _predict(self, ticket: Any, batches: Iterable[Any]) -> Any:
        """Return class probabilities [n, K] for batches of prepared images."""
        import torch

        network = network_of(ticket, self.ticket, self.model).to(self._device())
        with torch.inference_mode():
            found = [network(x.to(self._device())).float().softmax(1).cpu() for x in batches]
        return torch.cat(found)

    def _tell_images(self, ticket: Any, paths: list[Path], probabilities: Any) -> int:
        from regraft.files import write_text

        found = best(paths, ticket.about["classes"], probabilities, self.top)
        if self.out is not None:
            write_text(self.out, as_csv(found))
        if self.json:
            print_json({"ticket": str(self.ticket), "images": found})
            return 0
        lines = [
            [f["image"], *(f"{t['class']} {t['probability']:.1%}" for t in f["top"])] for f in found
        ]
        table(headings(len(lines[0]) - 1), lines)
        return 0

    def _tell_accuracy(
        self,
        ticket: Any,
        data: str,
        split: str,
        probabilities: Any,
        labels: Any,
        columns: list[str],
        rows: Any = None,
    ) -> int:
        """Tell the accuracy on `rows` (all by default) and write the prediction for every one."""
        from regraft.files import write_text

        names = ticket.about["classes"]
        predicted = probabilities.argmax(1)
        right = predicted == labels
        chosen = right if rows is None else right[rows]
        accuracy = 100.0 * chosen.double().mean().item()
        if self.out is not None:
            pairs = zip(labels.tolist(), predicted.tolist(), strict=True)
            # A node may have no known class.
            lines = [
                [str(i), names[y] if y >= 0 else "", names[p]] for i, (y, p) in enumerate(pairs)
            ]
            write_text(self.out, csv_text([columns, *lines]))
        n = len(chosen)
        if self.json:
            what = {"data": data, "split": split, "n": n, "accuracy": accuracy}
            print_json({"ticket": str(self.ticket), **what})
        else:
            said = f"{split} accuracy" if split == "test" else "accuracy"
            say(f"{said} on {data}: {accuracy:.2f}% of {n}")
        return 0


def _preparation(about: dict[str, Any], path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the kind of features and the split that a graph's ticket names, types checked."""
    from regraft.errors import InputError

    split = about.get("split", {})
    if not isinstance(split, dict):
        raise InputError(
            f"{path} has split={_short(split)}: expected an object; find or pack the ticket again"
        )
    found = {key: split[key] for key in _SPLIT if key in split}
    kinds = {**_SPLIT, "features": "text"}
    for key, value in {"features": about.get("features", "raw"), **found}.items():
        if type(value) not in _TYPES[kinds[key]]:
            raise InputError(
                f"{path} has {key}={_short(value)}: expected {kinds[key]}; find or pack the ticket again"
            )
    return about.get("features", "raw"), found


def _short(value: Any) -> str:
    return repr(value)[:60]
