"""What a transfer says of itself: in words, as a table, and as a page with its curves."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regraft.cli.merging.gathered import Gathered

LABELS = {
    "gmt": "GMT",
    "fgmt": "FGMT",
    "naive": "naive",
    "oracle": "oracle",
    "initial_weights": "initial weights",
    "scratch": "from scratch",
}


def about_data(given: Gathered) -> dict[str, Any] | None:
    """Return what the data are, or None where there are none."""
    if not given.data:
        return None
    data = given.data[0]
    return {
        "name": data.splits.name,
        "train_images": len(data.splits.train),
        "tested_on": data.tested_on,
        "test_images": len(data.test),
        "mean": list(data.mean),
        "std": list(data.std),
    }


def notes_of(groups: int, last: dict[str, Any], *, measured: bool) -> list[str]:
    """Return what the user should know of a transfer.

    Args:
        groups: Number of groups that can be permuted.
        last: The row of the last step.
        measured: Whether there were data to measure on.
    """
    notes = []
    if not groups:
        notes.append(
            "nothing in this architecture can change places, so that every method is the naive transfer: "
            "spec.json says what pins each axis"
        )
    elif last["cosine"] is not None and last["cosine"] < last["cosine_before"] + 0.05:
        notes.append(
            "the permutation brings the two networks no closer (cosine "
            f"{last['cosine_before']:.3f} before, {last['cosine']:.3f} after): "
            "expect no more than the naive transfer gives"
        )
    if last["dead"]:
        notes.append(
            f"{len(last['dead'])} groups have no gradients in one of the networks and stay in place: "
            f"{', '.join(last['dead'][:3])}"
        )
    if not measured:
        notes.append(
            "without --data nothing was measured and BatchNorm statistics are the source's"
        )
    return notes


def summary(card: dict[str, Any]) -> list[str]:
    """Return what was done and found, a sentence each."""
    spec, steps = card["spec"], card["trajectory"]["steps"]
    lines = [
        f"{' and '.join(card['source'])} carried over to {card['to']} ({card['model']['name']}) by "
        f"{LABELS[card['by']]}",
        f"trajectory: {card['trajectory']['origin']}, steps {steps[1]} to {steps[-1]}",
    ]
    if card["trajectory"]["error"] > 1e-4:
        lines.append(
            f"its displacements are stored with an error of {100 * card['trajectory']['error']:.2g}%"
        )
    lines.append(
        f"symmetries: {spec['groups']} groups, {100 * spec['free_share']:.1f}% of the axes free to move"
    )
    last = card["steps"][-1]
    if last["cosine"] is not None:
        what = "gradients" if card["by"] in ("gmt", "fgmt") else "weights"
        lines.append(
            f"the {what} of the two networks: cosine {last['cosine_before']:.3f} as they are, "
            f"{last['cosine']:.3f} permuted"
        )
    costs = last["costs"]
    lines.append(
        f"{costs['total']:.1f} s: gradients {costs['gradients']:.1f} ({costs['count']}), contractions "
        f"{costs['contraction']:.1f}, assignments {costs['assignment']:.1f}"
    )
    for name, curve in card["paths"].items():
        ends = {
            "permuted source": "from the permuted source",
            "trained target": "from the trained target",
            "between": "from the trained target to the permuted source",
        }[name]
        lines.append(
            f"barrier {ends}: {curve['loss_barrier']:.3f} nats, {curve['accuracy_barrier']:.1f} points"
        )
    return [*lines, *_training(card), *(f"note: {note}" for note in card["notes"])]


def _training(card: dict[str, Any]) -> list[str]:
    from .training import reached

    found = card["then_train"]
    if not found:
        return []
    lines = []
    goal = found["scratch"]["curve"][-1]["validation_accuracy"]
    spent = found["scratch"]["seconds"]
    for arm, run in found.items():
        step = "" if run["from_step"] is None else f" from step {run['from_step']}"
        lines.append(
            f"trained on{step}, {LABELS[arm]}: test accuracy {run['test_accuracy_before']:.2f}% -> "
            f"{run['metrics']['test_accuracy']:.2f}% in {run['seconds']:.1f} s, of which "
            f"{run['seconds_before']:.1f} s before training"
        )
        if arm == "scratch":
            continue
        at = reached(run["curve"], goal)
        if at is None:
            lines.append(
                f"{LABELS[arm]} does not reach the {goal:.2f}% (validation) of training from scratch"
            )
        else:
            sooner = "sooner" if at["seconds"] < spent else "later"
            lines.append(
                f"{LABELS[arm]} reaches the {goal:.2f}% (validation) of training from scratch after "
                f"{at['epoch']} epochs and {at['seconds']:.1f} s, {sooner} than its {spent:.1f} s"
            )
    return lines


def score_table(card: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines of the scores on all images."""
    lines = [
        [
            name,
            f"{found['validation_accuracy']:.2f}",
            f"{found['test_accuracy']:.2f}",
            f"{found['test_loss']:.4f}",
        ]
        for name, found in card["scores"].items()
    ]
    tested = card["data"]["tested_on"] if card["data"] else "test"
    return ["", "validation (%)", f"{tested} (%)", f"{tested} loss"], lines


def write_documents(out: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Write README.md and, where its parts are installed, report.html; return the card with them."""
    from regraft.errors import MissingExtraError
    from regraft.files import write_text

    card = {**card, "files": list(card["files"])}
    if card["curves"]:
        try:
            write_text(out / "report.html", page(card))
            card["files"].append("report.html")
        except MissingExtraError as error:
            card["notes"] = [*card["notes"], f"report.html was left out: {error}"]
    card["files"] += ["README.md", "card.json"]
    write_text(out / "README.md", _readme(card))
    return card


def _readme(card: dict[str, Any]) -> str:
    parts = ["# A transferred training run", "", *(f"- {_sentence(s)}" for s in summary(card)), ""]
    if card["scores"]:
        headings, lines = score_table(card)
        rows = [headings, ["---"] * len(headings), *lines]
        parts += [*(f"| {' | '.join(row)} |" for row in rows), ""]
    known = {
        "model-best": "the target at the step of the best validation accuracy",
        "model": "the target at the last step",
        "steps/": "the target at one step",
        "permutation": "how the source was permuted, by group: `spec.apply(state, permutation)`",
        "spec": "the symmetries: `PermutationSpec.from_json`",
        "report": "scores and curves",
        "card": "all of this for programs; it is written last",
    }
    parts += [
        f"- `{name}`: {next((v for k, v in known.items() if name.startswith(k)), 'this page')}"
        for name in card["files"]
    ]
    return "\n".join([*parts, "", "```", card["command"], "```", ""])


def _sentence(line: str) -> str:
    return line[:1].upper() + line[1:]


def page(card: dict[str, Any]) -> str:
    """Return the page of a card with curves; equal cards give equal bytes.

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
    figures = [
        {"title": title, "text": text, "drawn": [Markup(svg.inline(d, f"f{i}{j}-"))
                                                 for j, d in enumerate(drawn)]}
        for i, (title, text, drawn) in enumerate(_figures(card))
    ]  # fmt: skip
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css = files("regraft.report").joinpath("page.css").read_text("utf-8").strip()
    template = files("regraft.cli.transferring").joinpath("page.html.jinja").read_text("utf-8")
    headings, lines = score_table(card)
    return environment.from_string(template).render(
        css=Markup(css),
        title="A transferred training run",
        facts=[card["model"]["name"], f"by {LABELS[card['by']]}", card["data"]["name"]],
        headings=headings,
        lines=lines,
        tested=f"{card['data']['test_images']} {card['data']['tested_on']} images",
        figures=figures,
        summary=summary(card),
        command=card["command"],
    )


def _figures(card: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    from regraft.report import Line, Panel, lines

    def drawn(panel: list[Line], x: str, y: str) -> str:
        return lines([Panel(title="", lines=panel)], x_label=x, y_label=y)

    start = card["scores"]["target, untrained"]
    order = sorted(card["curves"], key=lambda by: by != "naive")  # the grey is the control's
    along = {
        key: [
            Line(
                label=LABELS[by],
                x=[0, *(row["step"] for row in card["curves"][by])],
                y=[start[f"test_{key}"], *(row[f"test_{key}"] for row in card["curves"][by])],
            )
            for by in order
        ]
        for key in ("accuracy", "loss")
    }
    found = [
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
        found.append(
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
        found.append(
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
    return found
