"""The drawings of a transfer's card: along the steps, trained on, on paths and over a plane."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from regraft.report import Figure, Line, Panel, lines
from regraft.report.surface import Surface, surfaces

from .config import LABELS

_BY = {"accuracy": "Accuracy (%)", "loss": "Loss (nats)"}


def figures_of(facts: dict[str, Any]) -> list[Figure]:
    """Return what is drawn of a transfer with data, as soon as a page is made."""
    figures = _pair(
        "Before any training",
        "The target along the source's steps, permuted by each method; nothing is trained.",
        partial(_along, facts),
    )
    if facts["then_train"]:
        figures += _pair(
            "Trained on",
            "All see the same batches; seconds count the transfer, tracing, and the scores by which its "
            "step was chosen.",
            partial(_trained, facts),
            {"epoch": "Epochs of training", "seconds": "Seconds"},
        )
    if facts["paths"]:
        figures += _pair(
            "Paths",
            "Straight lines that end (at 1) at the transferred network: from the permuted source and from "
            "the trained target; `between` is the line from the latter to the former.",
            partial(_path, facts),
        )
    plane = facts["plane"]
    if plane:
        named = "; ".join(f"{i}: {name}" for i, name in enumerate(plane["through"], start=1))
        figures += _pair(
            "Plane",
            f"The plane through three networks, its axes in lengths of weight space. {named}. Measured at "
            f"{len(plane['x'])} x {len(plane['y'])} points; between them it is drawn by interpolation.",
            partial(_surface, plane),
        )
    return figures


def _pair(
    title: str, note: str, draw: Callable[[str, str], str], by: Mapping[str, str] = _BY
) -> list[Figure]:
    return [
        Figure(title=title, content=partial(draw, key, name), caption=name, note="" if i else note)
        for i, (key, name) in enumerate(by.items())
    ]


def _lines(panel: list[Line], x: str, y: str) -> str:
    return lines([Panel(title="", lines=panel)], x_label=x, y_label=y)


def _along(facts: dict[str, Any], key: str, y: str) -> str:
    start = facts["scores"]["target, untrained"]
    # The grey is the control's.
    order = sorted(facts["curves"], key=lambda method: method != "naive")
    panel = [
        Line(
            label=LABELS[method],
            x=[0, *(row["step"] for row in facts["curves"][method])],
            y=[start[f"test_{key}"], *(row[f"test_{key}"] for row in facts["curves"][method])],
        )
        for method in order
    ]
    return _lines(panel, "Step of the source", y)


def _trained(facts: dict[str, Any], key: str, x: str) -> str:
    panel = [
        Line(
            label=LABELS[arm],
            x=[p[key] for p in run["curve"]],
            y=[p["validation_accuracy"] for p in run["curve"]],
        )
        for arm, run in facts["then_train"].items()
    ]
    return _lines(panel, x, "Validation accuracy (%)")


def _path(facts: dict[str, Any], key: str, y: str) -> str:
    panel = [
        Line(label=name, x=curve["at"], y=[score[key] for score in curve["scores"]])
        for name, curve in facts["paths"].items()
    ]
    return _lines(panel, "Position on the line", y)


def _surface(plane: dict[str, Any], key: str, label: str) -> str:
    shown = Surface(title="", values=plane[key], x=plane["x"], y=plane["y"], points=plane["points"])
    return surfaces([shown], label=label, log=key == "loss")
