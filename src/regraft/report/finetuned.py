"""The card and the report page of a fine-tuned model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from regraft.errors import MissingExtraError

from . import svg, wording
from .figure import Line, Panel, lines
from .plots import learning_curves
from .runs import read_run
from .wording import NONE

_MOST_CLASSES = 30
_PAIRS = 10


def card(path: Path, facts: dict[str, Any], found: dict[str, Any]) -> str:
    """Return the Markdown card of a result folder.

    Args:
        path: The folder.
        facts: `about` of the model's file, `result`, `search`, and `images` by part and class.
        found: What `train.evaluation` says of each part.
    """
    split, figures = shown(found)
    about = facts["about"]
    parts = [
        f"# {about['model']['name']} fine-tuned on {about['data']}",
        _lead(facts, split, figures),
        f"Start: {'; '.join(about['start'])}.",
        "## Use",
        "```sh\nregraft predict FOLDER photos/\nregraft evaluate FOLDER --data labelled/\n```".replace(
            "FOLDER", _word(path)
        ),
        _preparation(about),
        "## How good it is",
        _markdown(["", *_SUMMARY], [[k.capitalize(), *_summary(v)] for k, v in found.items()]),
        _calibration(split, figures),
        f"### By class ({split} images)",
        _markdown(_BY_CLASS, by_class(facts, figures)),
    ]
    names = about["classes"]
    if len(names) <= _MOST_CLASSES:
        parts += [
            "### Confusion matrix",
            "Rows are the true classes, columns what the model says.",
            _markdown(
                ["", *names],
                [
                    [f"**{_cell(n)}**", *map(str, row)]
                    for n, row in zip(names, figures["confusion"], strict=True)
                ],
                raw=True,
            ),
        ]
    pairs = confusions(figures)
    if pairs:
        parts += ["### Most often confused", _markdown(_CONFUSED, pairs)]
    parts += ["## How it was chosen", _choice(facts)]
    if facts["search"]["trials"]:
        parts.append(_markdown(_TRIALS, trials(facts)))
    return "\n\n".join(parts) + "\n"


def page(path: Path, facts: dict[str, Any], found: dict[str, Any]) -> str:
    """Return the HTML page of a result folder: one file, no script, no request, light and dark.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError("jinja2", "report", "writing a report page") from error
    split, figures = shown(found)
    about = facts["about"]
    names = about["classes"]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    here = files("regraft.report")
    template = environment.from_string(here.joinpath("finetuned.html.jinja").read_text("utf-8"))
    run = read_run(path)
    drawn = [
        {"title": "Learning curve", "svg": learning_curves([run])},
        {"title": f"Reliability ({split})", "svg": _reliability(figures)},
    ]
    return template.render(
        css=Markup(here.joinpath("page.css").read_text("utf-8").strip()),
        title=f"{about['model']['name']} fine-tuned on {about['data']}",
        lead=_lead(facts, split, figures),
        start="; ".join(about["start"]),
        split=split,
        summary=_SUMMARY,
        rows=[[k.capitalize(), *_summary(v)] for k, v in found.items()],
        calibration=_calibration(split, figures),
        figures=[
            {"title": f["title"], "svg": Markup(svg.inline(f["svg"], f"f{i}-"))}
            for i, f in enumerate(drawn)
        ],
        by_class=_BY_CLASS,
        classes=by_class(facts, figures),
        names=names if len(names) <= _MOST_CLASSES else [],
        matrix=[
            _shaded(n, row, i)
            for i, (n, row) in enumerate(zip(names, figures["confusion"], strict=True))
        ],
        confused=_CONFUSED,
        pairs=confusions(figures),
        choice=_choice(facts),
        trial_headings=_TRIALS,
        trials=trials(facts),
        command=run.environment.get("command", ""),
        facts=[
            (wording.phrase(k), str(v))
            for k, v in run.environment.items()
            if k != "command" and v is not None
        ],
    )


_SUMMARY = (
    "Images",
    "Accuracy (%)",
    "95% interval",
    "Mean over classes (%)",
    "Loss (nats)",
    "Calibration error (%)",
)
_BY_CLASS = ("Class", "Trained on", "Images", "Recall (%)", "Precision (%)", "F1 (%)")
_CONFUSED = ("Class", "Taken for", "Images")
_TRIALS = ("Learning rate", "Weight", "Epochs", "Validation accuracy (%)", "Validation loss (nats)")


def shown(found: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return which part the figures by class are of, test where there is one, and its figures."""
    split = "test" if "test" in found else next(iter(found))
    return split, found[split]


def by_class(facts: dict[str, Any] | None, figures: dict[str, Any]) -> list[list[str]]:
    """Return the lines of the per-class table; without `facts` no number of training images."""
    lines = []
    for row in figures["per_class"]:
        trained = [] if facts is None else [str(facts["images"]["train"].get(row["class"], 0))]
        rest = [wording.number(row[k], 1) for k in ("recall", "precision", "f1")]
        lines.append([row["class"], *trained, str(row["images"]), *rest])
    return lines


def confusions(figures: dict[str, Any]) -> list[list[str]]:
    """Return the lines of the table of the pairs that are confused most often."""
    from regraft.train.evaluation import confused

    found = confused(figures, _PAIRS)
    return [[pair["class"], pair["taken_for"], str(pair["images"])] for pair in found]


def trials(facts: dict[str, Any]) -> list[list[str]]:
    """Return the lines of the table of the search, the chosen setting marked."""
    chosen, last = (
        facts["search"]["chosen"],
        max((t["epochs"] for t in facts["search"]["trials"]), default=0),
    )
    rows = []
    for trial in facts["search"]["trials"]:
        best = all(trial[k] == chosen[k] for k in chosen) and trial["epochs"] == last
        weight = NONE if trial["weight"] is None else f"{trial['weight']:g}"
        figures = (
            ["diverged", NONE]
            if "diverged" in trial
            else [f"{trial['validation_accuracy']:.1f}", f"{trial['validation_loss']:.3f}"]
        )
        mark = " ✓" if best else ""
        rows.append([f"{trial['lr']:g}{mark}", weight, str(trial["epochs"]), *figures])
    return rows


def _lead(facts: dict[str, Any], split: str, figures: dict[str, Any]) -> str:
    images = sum(facts["images"]["train"].values())
    about = facts["about"]
    caution = (
        "" if split == "test" else " These images also chose the model, so new ones will do worse."
    )
    return (
        f"{figures['accuracy']:.1f}% of {figures['images']} {split} images are classified right, after "
        f"training on {images} images of {len(about['classes'])} classes with {about['method']}.{caution}"
    )


def _summary(figures: dict[str, Any]) -> list[str]:
    low, high = figures["accuracy_interval"]
    return [
        str(figures["images"]),
        f"{figures['accuracy']:.1f}",
        wording.interval(low, high, 1),
        f"{figures['balanced_accuracy']:.1f}",
        f"{figures['loss']:.3f}",
        f"{figures['calibration_error']:.1f}",
    ]


def _calibration(split: str, figures: dict[str, Any]) -> str:
    plain = figures["uncalibrated"]
    return (
        f"Outputs are divided by the temperature {figures['temperature']:.3g}, fitted on the validation "
        f"images, before they become probabilities. Without it the loss on the {split} images is "
        f"{plain['loss']:.3f} and the expected calibration error {plain['calibration_error']:.1f}%."
    )


def _choice(facts: dict[str, Any]) -> str:
    result, chosen = facts["result"], facts["search"]["chosen"]
    weight = "" if chosen["weight"] is None else f" and weight {chosen['weight']:g}"
    how = (
        f"chosen on the validation images from {len(facts['search']['trials'])} trials"
        if facts["search"]["trials"]
        else "as given"
    )
    epoch = result["metrics"].get("selected_epoch")
    return (
        f"Learning rate {chosen['lr']:g}{weight}, {how}; {result['optimizer']}. The state after epoch "
        f"{epoch + 1} had the highest validation accuracy and is the one kept."
    )


def _preparation(about: dict[str, Any]) -> str:
    shape = about["input"]
    mean, std = ([round(v, 4) for v in about[k]] for k in ("mean", "std"))
    return (
        f"Images are {shape['image_size']} by {shape['image_size']} pixels with {shape['channels']} "
        f"channel(s), scaled to [0, 1], less mean {mean}, over std {std}; `predict` does it by itself."
    )


def _reliability(figures: dict[str, Any]) -> str:
    drawn = [Line(label="perfect", x=[0.0, 100.0], y=[0.0, 100.0])]
    for label, part in (("with temperature", figures), ("as trained", figures["uncalibrated"])):
        bins = part["reliability"]
        drawn.append(
            Line(
                label=label,
                x=[100 * b["confidence"] for b in bins],
                y=[100 * b["accuracy"] for b in bins],
            )
        )
    return lines(
        [Panel(title="", lines=drawn)], x_label="Probability given (%)", y_label="Right (%)"
    )


def _shaded(name: str, row: Sequence[int], place: int) -> dict[str, Any]:
    total = max(sum(row), 1)
    cells = [
        {"n": n, "share": round(100 * n / total), "right": i == place} for i, n in enumerate(row)
    ]
    return {"name": name, "cells": cells}


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], *, raw: bool = False) -> str:
    rule = ["---", *["---:"] * (len(headings) - 1)]
    body = [row if raw else [_cell(c) for c in row] for row in rows]
    table = [[_cell(h) for h in headings], rule, *body]
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def _cell(text: str) -> str:
    return re.sub(r"([\\|*_`<\[])", r"\\\1", " ".join(text.split()))


def _word(path: Path) -> str:
    text = path.name or str(path)
    return f"'{text}'" if re.search(r"[^\w./-]", text) else text
