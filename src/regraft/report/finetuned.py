"""The card of a fine-tuned model: how good it is, by class, and how it was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from regraft.checkpoints.model_card import is_elsewhere

from . import wording
from .card import ResultCard, command_of
from .document import Cell, Figure, Table
from .figure import Line, Panel, lines
from .plots import learning_curve
from .wording import NONE

_MOST_CLASSES = 30
_PAIRS = 10


def card_of(path: Path, facts: dict[str, Any], measured: dict[str, Any]) -> ResultCard:
    """Return the card of a result folder.

    Args:
        path: The folder.
        facts: `about` of the model's file, `result`, `search`, and `images` by part and class.
        measured: What `train.evaluation` says of each part.
    """
    split, figures = shown(measured)
    about = facts["about"]
    start, good = "; ".join(about["start"]), "How good it is"
    tables = [
        Table(
            title=good,
            headings=["", *_SUMMARY],
            rows=[[k.capitalize(), *_summary(v)] for k, v in measured.items()],
            note=_calibration(split, figures),
        ),
        *tables_by_class(split, about["classes"], figures, facts["images"]["train"]),
    ]
    pairs = confusions(figures)
    if pairs:
        kinds = ("text", "text", "number")
        title = "Most often confused"
        tables.append(Table(title=title, headings=_CONFUSED, rows=pairs, kinds=kinds))
    tried = trials(facts)
    if tried:
        tables.append(Table(title="How it was chosen", headings=_TRIALS, rows=tried))
    name = about["model"]["name"]
    model = name if is_elsewhere(name) else None
    return ResultCard(
        kind="finetune",
        title=f"{name} fine-tuned on {about['data']}",
        lines=[
            _lead(facts, split, figures),
            f"Start: {start}.",
            _choice(facts),
            *_added(facts),
            _preparation(about),
        ],
        tables=tables,
        figures=[
            Figure(title=good, content=partial(learning_curve, path), caption="Learning curve"),
            Figure(
                title=good, content=partial(_reliability, figures), caption=f"Reliability ({split})"
            ),
        ],
        files={
            "model.safetensors": "the weights, which say what they are of and how images are prepared",
            "classes.txt": "the classes, one a line, in the order of the outputs",
            "split.csv": "which image was for training, for validation, for the final figure",
            "search.json": "the method that was chosen, on what, and every trial",
            "evaluation.json": "confusion matrix, figures by class, calibration",
        },
        next=[
            command_of("predict", path, "IMAGES", model=model),
            command_of("evaluate", path, data="LABELLED", model=model),
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
_TRIALS = (
    "Method",
    "Learning rate",
    "Weight",
    "Epochs",
    "Validation accuracy (%)",
    "Validation loss (nats)",
)


def shown(measured: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return which part the figures by class are of, test where there is one, and its figures."""
    split = "test" if "test" in measured else next(iter(measured))
    return split, measured[split]


def tables_by_class(
    split: str, classes: Sequence[str], figures: Mapping[str, Any], trained: Mapping[str, int]
) -> list[Table]:
    """Return figures by class and the confusion matrix, which many classes have none of.

    Args:
        split: What was measured.
        classes: Their names.
        figures: What `train.evaluation` says of it.
        trained: Training images by class.
    """
    title, rows = f"By class ({split} images)", by_class(trained, figures)
    tables = [Table(title=title, headings=_BY_CLASS, rows=rows)]
    if len(classes) <= _MOST_CLASSES:
        tables.append(_matrix(split, classes, figures["confusion"]))
    return tables


def by_class(trained: Mapping[str, int] | None, figures: Mapping[str, Any]) -> list[list[str]]:
    """Return the lines of the per-class table; without `trained` no number of training images."""
    lines = []
    for row in figures["per_class"]:
        images = [] if trained is None else [str(trained.get(row["class"], 0))]
        rest = [wording.number(row[k], 1) for k in ("recall", "precision", "f1")]
        lines.append([row["class"], *images, str(row["images"]), *rest])
    return lines


def confusions(figures: dict[str, Any]) -> list[list[str]]:
    """Return the lines of the table of the pairs that are confused most often."""
    from regraft.train.evaluation import confused

    pairs = confused(figures, _PAIRS)
    return [[pair["class"], pair["taken_for"], str(pair["images"])] for pair in pairs]


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
        rate = f"{trial['lr']:g}{mark}"
        rows.append([trial["method"], rate, weight, str(trial["epochs"]), *figures])
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
        f"images (1 where there are fewer than 50), before they become probabilities. Without it the "
        f"loss on the {split} images is "
        f"{plain['loss']:.3f} and the expected calibration error {plain['calibration_error']:.1f}%."
    )


def _choice(facts: dict[str, Any]) -> str:
    result, searched = facts["result"], facts["search"]
    chosen, metrics = searched["chosen"], result["metrics"]
    text = f"Method {chosen['method']}"
    if chosen["lr"] is not None:
        text += f", learning rate {chosen['lr']:g}"
    if chosen["weight"] is not None:
        text += f", weight {chosen['weight']:g}"
    how = (
        searched["basis"]
        if searched["trials"] or "untried" in searched
        else f"as given; {searched['basis']}"
    )
    text += f", {how}; {result['optimizer']}."
    epoch = metrics.get("selected_epoch")
    if epoch is not None:
        text += f" The state after epoch {epoch + 1} had the highest validation figure and is kept."
    return text


def _added(facts: dict[str, Any]) -> list[str]:
    """Say what fine-tuning added to the linear probe of the start."""
    probe, metrics = facts["search"].get("probe"), facts["result"]["metrics"]
    if probe is None:
        return []
    parts = [
        f"{probe[f'{part}_accuracy']:.1f}% of the {part} images right "
        f"({metrics[f'{part}_accuracy'] - probe[f'{part}_accuracy']:+.1f} points by fine-tuning)"
        for part in ("validation", "test")
        if f"{part}_accuracy" in probe
    ]
    return [f"A linear probe of the start has {' and '.join(parts)}."]


def _preparation(about: dict[str, Any]) -> str:
    shape = about["input"]
    mean, std = ([round(v, 4) for v in about[k]] for k in ("mean", "std"))
    return (
        f"Images are {shape['image_size']} by {shape['image_size']} pixels with {shape['channels']} "
        f"channel(s), scaled to [0, 1], less mean {mean}, over std {std}; regraft predict does so itself."
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


def _matrix(split: str, names: Sequence[str], confusion: Sequence[Sequence[int]]) -> Table:
    rows: list[list[str | Cell]] = []
    for i, (name, row) in enumerate(zip(names, confusion, strict=True)):
        total = max(sum(row), 1)
        shares = (round(100 * n / total) for n in row)
        marks = ("right" if i == j else "" for j in range(len(row)))
        rows.append([name, *map(Cell, map(str, row), marks, shares)])
    return Table(
        title=f"Confusion matrix ({split} images)",
        headings=["True class", *names],
        rows=rows,
        note="Rows are the true classes, columns what the model says; shades are shares of the row.",
    )
