"""The pages of a transfer: README.md, and report.html with curves, scores and how it was done."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from regraft.errors import MissingExtraError
from regraft.report import Line, Panel, cards, lines, svg
from regraft.report.surface import Surface, surfaces

from .card import LABELS, score_table, summary


def page(card: dict[str, Any]) -> str:
    """Return the page of a card with curves; equal cards give equal bytes.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "writing a report page") from error
    figures = [
        {"title": title, "text": text, "drawn": [Markup(svg.inline(d, f"f{i}{j}-"))
                                                 for j, d in enumerate(drawn)]}
        for i, (title, text, drawn) in enumerate(_figures(card))
    ]  # fmt: skip
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css = files("regraft.report").joinpath("page.css").read_text("utf-8").strip()
    template = files("regraft.jobs.transfer").joinpath("page.html.jinja").read_text("utf-8")
    headings, rows = score_table(card)
    return environment.from_string(template).render(
        css=Markup(css),
        title="A transferred training run",
        facts=[card["model"]["name"], f"by {LABELS[card['match']]}", card["data"]["name"]],
        headings=headings,
        lines=rows,
        tested=f"{card['data']['test_images']} {card['data']['tested_on']} images",
        figures=figures,
        summary=summary(card),
        command=card["command"],
    )


def _figures(card: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    def drawn(panel: list[Line], x: str, y: str) -> str:
        return lines([Panel(title="", lines=panel)], x_label=x, y_label=y)

    start = card["scores"]["target, untrained"]
    order = sorted(
        card["curves"], key=lambda method: method != "naive"
    )  # the grey is the control's
    along = {
        key: [
            Line(
                label=LABELS[method],
                x=[0, *(row["step"] for row in card["curves"][method])],
                y=[start[f"test_{key}"], *(row[f"test_{key}"] for row in card["curves"][method])],
            )
            for method in order
        ]
        for key in ("accuracy", "loss")
    }
    figures = [
        (
            "Before any training",
            "The target along the source's steps, permuted by each method; nothing is trained.",
            [
                drawn(along["accuracy"], "Step of the source", "Accuracy (%)"),
                drawn(along["loss"], "Step of the source", "Loss (nats)"),
            ],
        )
    ]
    if card["then_train"]:
        panels = {
            x: [
                Line(
                    label=LABELS[arm],
                    x=[p[x] for p in run["curve"]],
                    y=[p["validation_accuracy"] for p in run["curve"]],
                )
                for arm, run in card["then_train"].items()
            ]
            for x in ("epoch", "seconds")
        }
        figures.append(
            (
                "Trained on",
                "All see the same batches; seconds count the transfer, tracing, and the scores by which "
                "its step was chosen.",
                [
                    drawn(panels["epoch"], "Epochs of training", "Validation accuracy (%)"),
                    drawn(panels["seconds"], "Seconds", "Validation accuracy (%)"),
                ],
            )
        )
    if card["paths"]:
        paths = {
            key: [
                Line(label=name, x=curve["at"], y=[score[key] for score in curve["scores"]])
                for name, curve in card["paths"].items()
            ]
            for key in ("accuracy", "loss")
        }
        figures.append(
            (
                "Paths",
                "Straight lines that end (at 1) at the transferred network: from the permuted source and "
                "from the trained target; `between` is the line from the latter to the former.",
                [
                    drawn(paths["accuracy"], "Position on the line", "Accuracy (%)"),
                    drawn(paths["loss"], "Position on the line", "Loss (nats)"),
                ],
            )
        )
    if card["plane"]:
        figures.append(_plane(card["plane"]))
    return figures


def _plane(plane: dict[str, Any]) -> tuple[str, str, list[str]]:
    shape = {"x": plane["x"], "y": plane["y"], "points": plane["points"]}
    drawn = [
        surfaces([Surface(title="", values=plane["accuracy"], **shape)], label="Accuracy (%)"),
        surfaces([Surface(title="", values=plane["loss"], **shape)], label="Loss (nats)", log=True),
    ]
    named = "; ".join(f"{i}: {name}" for i, name in enumerate(plane["through"], start=1))
    text = (
        f"The plane through three networks, its axes in lengths of weight space. {named}. Measured at "
        f"{len(plane['x'])} x {len(plane['y'])} points; between them it is drawn by interpolation."
    )
    return "Plane", text, drawn


def write_documents(out: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Write README.md and, where its parts are installed, report.html; return the card with them."""
    return cards.write_documents(out, card, page=page if card["curves"] else None, about=_readme)


def _readme(card: dict[str, Any]) -> str:
    return cards.readme(
        "A transferred training run",
        summary(card),
        table=score_table(card) if card["scores"] else None,
        files=card["files"],
        known={
            "model-best": "the target at the step of the best validation accuracy",
            "model": "the target at the last step",
            "steps/": "the target at one step",
            "permutation": "how the source was permuted, by group: `spec.apply(state, permutation)`",
            "spec": "the symmetries: `PermutationSpec.from_json`",
            "report": "scores and curves",
            "card": "all of this for programs; it is written last",
        },
        command=card["command"],
    )
