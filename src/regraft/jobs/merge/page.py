"""The report of a merge: one HTML page with scores, curves and how it was done."""

from __future__ import annotations

from importlib.resources import files
from typing import Any


def page(
    card: dict[str, Any], summary: list[str], scores: tuple[list[str], list[list[str]]]
) -> str:
    """Return the page of a card with scores; equal cards give equal bytes.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    from regraft.errors import MissingExtraError
    from regraft.report import svg

    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "writing a report page") from error
    headings, lines = scores
    figures = []
    for i, (pair, curves) in enumerate(card.get("curves", {}).items()):
        one, two = pair.split("-")
        drawn = {
            key: Markup(svg.inline(_figure(card, curves, key, (one, two)), f"c{i}{key}-"))
            for key in ("accuracy", "loss")
        }
        barriers = [
            [
                label,
                f"{c['middle']['accuracy']:.1f}",
                f"{c['loss_barrier']:.3f}",
                f"{c['accuracy_barrier']:.1f}",
            ]
            for label, c in curves.items()
        ]
        figures.append({"title": f"From model {one} to model {two}", "barriers": barriers, **drawn})
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css = files("regraft.report").joinpath("page.css").read_text("utf-8").strip()
    models = sum(m["role"] != "base" for m in card["models"])
    template = files("regraft.jobs.merge").joinpath("page.html.jinja").read_text("utf-8")
    return environment.from_string(template).render(
        css=Markup(css),
        title=f"A merge of {models} models",
        facts=[card["model"]["name"], f"by {card['match']['by']}", card["merge"]["method"]],
        headings=headings,
        lines=lines,
        tested=", ".join(
            f"{d['test_images']} {d['tested_on']} images of {d['name']}" for d in card["data"]
        ),
        figures=figures,
        images=card.get("curve_images", ""),
        summary=summary,
        command=card["command"],
    )


def _figure(card: dict[str, Any], curves: dict[str, Any], key: str, models: tuple[str, str]) -> str:
    from regraft.report import Line, Panel, lines

    drawn = [
        Line(label=label, x=curve["at"], y=[score[key] for score in curve["scores"]])
        for label, curve in curves.items()
    ]
    both = card["scores"].get("logit ensemble")
    if both is not None:
        drawn.append(Line(label="logit ensemble", x=[0.0, 1.0], y=[both[key]] * 2))
    unit = "%" if key == "accuracy" else "nats"
    return lines(
        [Panel(title="", lines=drawn)],
        x_label=f"Share of model {models[1]}",
        y_label=f"{key.capitalize()} ({unit})",
    )
