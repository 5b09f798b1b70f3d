"""The card of a condensed set: its images, what made them, what networks learn from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from regraft.config import ModelConfig
from regraft.generators import CondensedSet, Condenser
from regraft.report import Figure, Line, Panel, ResultCard, Table, contact_sheet, lines, png
from regraft.report.wording import duration, interval, number, size

from .job import CondenseJob

_ARMS = {
    "condensed": "condensed images",
    "random": "as many random images",
    "all": "all training images",
}


def card_of(
    job: CondenseJob,
    out: Path,
    condenser: Condenser,
    condensed: CondensedSet,
    scores: Sequence[Mapping[str, Any]] = (),
    model: ModelConfig | None = None,
) -> ResultCard:
    """Return the card of a condensed set, finished or not.

    Args:
        job: What is condensed.
        out: The result folder, with `condensed.safetensors` in it.
        condenser: What made the set.
        condensed: The set.
        scores: Rows of `summary`, if networks were trained.
        model: Those networks; None for the job's.
    """
    name, config = Path(job.data.name).name or job.data.name, condenser.config
    trained = (
        f"{(model or job.model).name} networks, all trained by SGD with momentum 0.9 and a cosine from "
        "0.05: 500 steps on the condensed and on the random images, 5 epochs on all."
    )
    file = out / "condensed.safetensors"
    losses, stored = condenser.losses, file.stat().st_size
    outside = ((condensed.images < 0) | (condensed.images > 1)).float().mean().item()
    note = (
        f"A row for each class, from above: {', '.join(condensed.classes)}. {outside:.0%} of the values "
        "lie outside [0, 1] and are cut off here, not in the file."
    )
    sheet = partial(_sheet, condensed)
    figures = [Figure(title="Images", content=sheet, note=note, file="images.png")]
    if len(losses) > 1:
        figures.append(Figure(title="Matching loss", content=partial(_curve, losses)))
    done = f"{len(losses)} of {condenser.restarts} networks"
    return ResultCard(
        kind="condense",
        title=f"{name} condensed",
        summary=[
            f"{condensed.num_classes} classes",
            f"{condensed.per_class} images of each",
            f"{len(condensed)} in all",
        ],
        lines=[
            *([] if condenser.done else [f"stopped after {done}: the same command goes on"]),
            f"{condensed.per_class} images of each of {condensed.num_classes} classes in "
            f"{duration(condenser.seconds)}: {file} ({size(stored)})",
        ],
        tables=[_scores(scores, trained)] if scores else [],
        figures=figures,
        files={"condensed.safetensors": "the images and their labels: CondensedSet.load"},
        notes=_notes(condenser.losses),
        facts={
            "Data": job.data.name,
            "Method": job.method,
            "Network": job.model.name,
            "Start": str(config.init),
            "Steps": f"{config.outer} of the images, {config.inner} epochs of the network",
            "Learning rate": f"images {config.lr_images:g}, network {config.lr_network:g}",
            "Real batch": f"{config.real_batch} of each class",
            "Transforms": ", ".join(config.transforms or ()) or "none",
            "Seed": str(job.runtime.seed),
            "Networks": done,
            "Time": duration(condenser.seconds),
        },
        data={
            "condensed": str(file),
            "picture": str(out / "images.png"),
            "page": str(out / "report.html"),
            "method": condensed.method,
            "classes": condensed.num_classes,
            "per_class": condensed.per_class,
            "restarts": len(losses),
            "finished": condenser.done,
            "loss": losses[-1] if losses else None,
            "seconds": round(condenser.seconds, 3),
            "stored_bytes": stored,
            "evaluation": list(scores),
        },
    )


def _notes(losses: Sequence[float]) -> list[str]:
    """Say so where the images have not come any closer."""
    part = len(losses) // 4
    if part < 2:
        return []
    first, last = math.fsum(losses[:part]) / part, math.fsum(losses[-part:]) / part
    if last < 0.95 * first:
        return []
    return [
        f"the matching loss has not fallen ({first:.3g} at first, {last:.3g} at the end): "
        "the images have hardly moved from their start; try more --restarts or another --lr-images"
    ]


def _scores(rows: Sequence[Mapping[str, Any]], note: str) -> Table:
    return Table(
        title="What networks learn from them",
        headings=["trained on", "accuracy (%)", "95%", "against random", "95%", "seeds"],
        kinds=["text", "number", "interval", "number", "interval", "number"],
        rows=[
            [
                _ARMS.get(row["arm"], row["arm"]),
                number(row["mean"], 1),
                interval(row["low"], row["high"], 1),
                number(row.get("difference"), 1, signed=True),
                interval(row.get("paired_low"), row.get("paired_high"), 1),
                str(row["n"]),
            ]
            for row in rows
        ],
        note=note,
    )


def _sheet(condensed: CondensedSet) -> bytes:
    return png(contact_sheet(condensed.images, columns=condensed.per_class))


def _curve(losses: Sequence[float]) -> str:
    """Draw the mean loss of up to a hundred groups of restarts."""
    groups = min(100, len(losses))
    edges = [round(i * len(losses) / groups) for i in range(groups + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    line = Line(label="loss", x=edges[1:], y=means)
    return lines(
        [Panel(title="", lines=[line])], x_label="Networks", y_label="Loss for one class and step"
    )
