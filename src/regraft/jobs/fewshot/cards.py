"""The cards of few-shot training and of an adapted classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from regraft.report import Figure, Line, Panel, ResultCard, Table, lines, read_run
from regraft.report.finetuned import tables_by_class
from regraft.report.picture import contact_sheet, png
from regraft.report.wording import duration, size

_MOST = 60
_QUERIES = 12
_FROZEN_ADVICE = (
    "on photographs a frozen pretrained network with --method logistic or prototypes is the bar: "
    "meta-training from scratch is for images that no pretrained network knows"
)
METHODS = {
    "meta-ticket": "a mask on random weights",
    "meta-ticket-boil": "a mask on random weights, with a classifier that never moves",
    "meta-ticket-anil": "a mask on random weights, of which the classifier alone adapts",
    "maml": "initial weights",
    "anil": "initial weights, of which the classifier alone adapts",
    "boil": "initial weights, all of which but the classifier adapt",
    "meta-sgd": "initial weights and a step size for each",
    "mgaug": "initial weights, also through randomly pruned sub-networks",
    "reptile": "initial weights, by plain training on each task",
    "protonet": "an embedding whose class means classify",
    "logistic": "nothing; new classes get a logistic regression on the frozen network",
    "prototypes": "nothing; new classes get their means on the frozen network",
    "untrained": "nothing; the weights are random",
}


def trained_card(path: Path, job: Mapping[str, Any], result: Mapping[str, Any]) -> ResultCard:
    """Return the card of a finished meta-training.

    Args:
        path: Its folder.
        job: The job's config as JSON.
        result: The job's result.
    """
    metrics, episodes, method = result["metrics"], job["episodes"], job["fewshot"]["method"]
    ways, shots = episodes["ways"], episodes["shots"]
    domains = [k.removesuffix("_ci") for k in metrics if k.endswith("_ci")]
    classes = result["classes"]
    first = next(name for name in classes if name != "train")
    rows = []
    for key in domains:
        name = first if key == "test" else key
        by_support = metrics.get(f"{key}_accuracy_by_support")
        rows.append(
            [
                name,
                _interval(metrics[f"{key}_accuracy"], metrics[f"{key}_ci"]),
                "–"
                if by_support is None
                else _interval(by_support, metrics[f"{key}_ci_by_support"]),
            ]
        )
    said = [
        f"{ways}-way {shots}-shot on {first}: {rows[0][1]} % over {job['test_tasks']} tasks (a guess gives "
        f"{100 / ways:.1f} %)",
        f"{method}, on {len(classes['train'])} classes, learns {METHODS[method]}",
    ]
    if result["seconds"]:
        steps, tasks = job["outer"]["steps"], job["outer"]["tasks"]
        said.append(f"{steps} outer steps of {tasks} tasks in {duration(result['seconds'])}")
    said.append(
        f"for new classes: regraft fewshot adapt {path} SUPPORT --out MODEL, SUPPORT a folder with a "
        "subfolder of a few images for each"
    )
    sparsity = {k.removeprefix("sparsity/"): v for k, v in metrics.items() if k.startswith("spars")}
    name = "model.ticket" if sparsity else "model.safetensors"
    tables = [
        Table(
            title="Accuracy on new classes",
            headings=["Classes", "Together (%)", "Image by image (%)"],
            rows=rows,
            note=(
                "95% intervals over tasks. Together: BatchNorm takes the statistics of all query images, "
                "as in the papers; image by image: those of the support images, which is what `adapt` "
                "writes."
            ),
        )
    ]
    if sparsity:
        tables.append(
            Table(
                title="The ticket",
                headings=["Weight", "Pruned"],
                rows=[[n, f"{100 * v:.1f} %"] for n, v in sparsity.items()],
            )
        )
    figures = []
    curve = _curve(path)
    if curve is not None:
        figures.append(
            Figure(title="Along training", content=curve, caption="accuracy along training")
        )
    if result["episode"]:
        figures.append(
            Figure(
                title="One episode",
                content=partial(_episode, result["episode"]),
                caption="probability of the right class of each query image, by inner steps",
                note="One line a query image of one test episode; a guess is a flat line at its share.",
            )
        )
    return ResultCard(
        kind="fewshot-train",
        title=f"Few-shot learner: {method}",
        summary=[f"{ways}-way {shots}-shot", method, size(result["stored_bytes"])],
        lines=said,
        tables=tables,
        figures=figures,
        notes=[*result["notes"], _FROZEN_ADVICE],
        files={
            name: "the ticket: masks and the seed of the weights"
            if sparsity
            else "what was meta-learned, for `regraft fewshot adapt`",
            "result.json": "the figures",
            "metrics.jsonl": "loss and accuracy along training",
        },
        data={"metrics": metrics, "classes": classes},
    )


def _episode(rows: Sequence[Sequence[float]]) -> str:
    """Draw how one episode is adapted to; see `one_episode`."""
    drawn = [
        Line(label=f"query {i}", x=list(range(len(row))), y=list(row))
        for i, row in enumerate(rows[:_QUERIES], 1)
    ]
    return lines(
        [Panel(title="", lines=drawn)],
        x_label="Inner steps",
        y_label="Right class (%)",
        legend=False,
    )


def _interval(mean: float, half: float) -> str:
    return f"{mean:.1f} ± {half:.1f}"


def _curve(path: Path) -> Callable[[], str] | None:
    rows = read_run(path).history
    points = [(r["step"], r["accuracy"]) for r in rows if r["split"] == "validation"]
    if len(points) < 2:
        return None
    line = Line(label="new classes", x=[p[0] for p in points], y=[p[1] for p in points])

    def draw() -> str:
        return lines(
            [Panel(title="", lines=[line])],
            x_label="Outer step",
            y_label="Accuracy (%)",
            legend=False,
        )

    return draw


def adapted_card(
    source: Path,
    use: str,
    about: Mapping[str, Any],
    counts: Mapping[str, int],
    pixels: Tensor,
    measured: Mapping[str, Any] | None,
) -> ResultCard:
    """Return the card of an adapted classifier.

    Args:
        source: Where the learner came from.
        use: A command that uses it.
        about: What the model file says it is of.
        counts: Support images by class.
        pixels: The support images, uint8 [S, C, H, W], class by class.
        measured: What `evaluation` says of the test images, where there were any.
    """
    classes = list(about["classes"])
    said = [f"a classifier of {', '.join(classes)}, adapted by {about['method']} from {source}"]
    rows = [[c, str(n)] for c, n in counts.items()]
    tables = [Table(title="Support images", headings=["Class", "Images"], rows=rows)]
    notes = ["probabilities are not calibrated: a few images cannot tell how far to trust them"]
    if measured is not None:
        low, high = measured["accuracy_interval"]
        said.insert(
            0,
            f"accuracy on {measured['images']} test images: {measured['accuracy']:.1f} % "
            f"[{low:.1f}, {high:.1f}]",
        )
        tables = tables_by_class("test", classes, measured, counts)
    else:
        notes.append("nothing was measured: give other images of the same classes with --test")
    shown = pixels[:_MOST].float() / 255
    picture = Figure(
        title="Support images",
        content=lambda: png(contact_sheet(shown, columns=max(counts.values()))),
        caption="the support images, class by class",
        file="support.png",
    )
    return ResultCard(
        kind="fewshot-adapt",
        title=f"Classifier of {len(classes)} new classes",
        summary=[f"{len(classes)} classes", f"{sum(counts.values())} support images"],
        lines=said,
        tables=tables,
        figures=[picture],
        notes=notes,
        files={"model.safetensors": "the classifier, an ordinary network in evaluation mode"},
        next=[use],
        data={} if measured is None else {"test": dict(measured)},
    )
