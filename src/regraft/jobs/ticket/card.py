"""The card of a search for a ticket, or of a training of the weights beside it."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from regraft.checkpoints.model_card import is_elsewhere
from regraft.data import Graph, graph_names
from regraft.jobs.data import load_once
from regraft.jobs.train import TrainJob
from regraft.machine import expanded
from regraft.report.card import ResultCard, command_of
from regraft.report.document import Figure, Table
from regraft.report.plots import learning_curve
from regraft.report.runs import read_run
from regraft.report.wording import interval, size
from regraft.tickets import load_ticket
from regraft.train.evaluation import wilson

from .describe import describe, layers_of

_FILES = {
    "model.ticket": "the ticket: masks and the seed of the weights",
    "model.safetensors": "the weights, which say what they are of and how images are prepared",
    "trajectory": "the recorded training, for `regraft transfer`",
    "checkpoint.safetensors": "the last state of the training",
    "metrics.jsonl": "loss and accuracy along training",
    "split.csv": "which image was for training, for validation, for the final figure",
}


def card_of(job: Any, out: Path, result: dict[str, Any]) -> ResultCard:
    """Return the card of a finished search or training.

    Args:
        job: The `TrainJob` or `RecordedJob`.
        out: Its folder.
        result: The job's result.
    """
    metrics, data = result["metrics"], load_once(job.data)
    files = {name: what for name, what in _FILES.items() if (out / name).exists()}
    parts = [part for part in ("test", "validation") if f"{part}_accuracy" in metrics]
    lines = [f"{part} accuracy: {metrics[f'{part}_accuracy']:.2f}%" for part in parts]
    made, stored = next(iter(files)), result["stored_bytes"]
    kind = "ticket" if made == "model.ticket" else "model"
    lines.append(f"{kind}: {out / made} ({size(stored)})")
    if "trajectory" in files:
        lines.append(f"recorded: {out / 'trajectory'}")
    scores = [_score(part, metrics, data) for part in parts]
    tables = [Table(title="How good it is", headings=_SCORES, rows=scores)]
    if "model.ticket" in files:
        tables.append(layers_of(describe(load_ticket(out))))
    curve = partial(learning_curve, out)
    trained = any(row["split"] == "train" for row in read_run(out).history)
    return ResultCard(
        kind="ticket-find",
        title=f"{job.model.name} on {data.name}: {job.arm}",
        summary=[job.setting, f"seed {job.runtime.seed}", size(stored)],
        lines=lines,
        tables=tables,
        figures=[Figure(title="Along training", content=curve)] if trained else [],
        notes=_notes(job, metrics, data),
        files=files,
        next=_next(job, out),
        data={"method": job.arm, **{key: result[key] for key in _TOLD}},
    )


_TOLD = ("metrics", "seconds", "trainable_parameters", "stored_bytes")
_SCORES = ("", "Examples", "Accuracy (%)", "95% interval", "Loss (nats)")


def _score(split: str, metrics: dict[str, float], data: Any) -> list[str]:
    accuracy, n = metrics[f"{split}_accuracy"], len(_labels(data, split))
    low, high = wilson(round(n * accuracy / 100), n)
    loss = f"{metrics[f'{split}_loss']:.3f}"
    return [split.capitalize(), str(n), f"{accuracy:.2f}", interval(low, high, 1), loss]


def _next(job: Any, out: Path) -> list[str]:
    """Return the commands that take what a search or a training left."""
    model = job.model.name if is_elsewhere(job.model.name) else None
    graph = job.data.name if job.data.name in graph_names() else None
    if (out / "model.ticket").exists():
        return [
            command_of("ticket run", out, *([] if graph else ["IMAGES"]), data=graph, model=model)
        ]
    use = [] if graph else [command_of("predict", out, "IMAGES", model=model)]
    if (out / "trajectory").exists():
        data = job.data.name
        data = str(Path(data).absolute()) if expanded(data).is_dir() else data
        use.append(command_of("transfer", out, to="FILE", data=data, model=model))
    return use


def _notes(job: Any, metrics: dict[str, float], data: Any) -> list[str]:
    """Say so where a search ended no better than guessing."""
    if not isinstance(job, TrainJob) or job.ticket.method == "random_mask":
        return []
    split = next((s for s in ("test", "validation") if f"{s}_accuracy" in metrics), None)
    if split is None:
        return []
    labels = _labels(data, split)
    most, n = labels.bincount().max().item() / len(labels), len(labels)
    reached = metrics[f"{split}_accuracy"] / 100
    if reached > 1.2 * most and reached > most + 3 * math.sqrt(most * (1 - most) / n):
        return []
    return [
        f"that is no better than guessing: the most frequent class is {most:.1%} of the {n} {split} "
        f"examples. Try more --epochs ({job.optim.epochs} were taken), another --lr ({job.optim.lr:g} now) "
        "or a larger --width"
    ]


def _labels(data: Any, split: str) -> Any:
    part = getattr(data, split)
    return data.y[part] if isinstance(data, Graph) else part.labels
