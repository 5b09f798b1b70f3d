"""What a transfer says of itself: in words, as a table, and as a page with its curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.report import cards

if TYPE_CHECKING:
    from regraft.jobs.merge.gathered import Gathered

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
            f"the {what} that were matched: cosine {last['cosine_before']:.3f} as the networks are, "
            f"{last['cosine']:.3f} permuted"
        )
    agreed = card["agreement"]
    if agreed is not None:
        lines.append(
            f"gradients on batches that were not: cosine {agreed['plain']:.3f} as the networks are, "
            f"{agreed['cosine']:.3f} permuted"
        )
    above = card["against_naive"]
    if above is not None:
        lines.append(
            f"above the naive transfer by {above['difference']:+.1f} ± {above['error']:.1f} points on "
            f"{above['images']} {above['part']} images"
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
    curve = found["scratch"]["curve"]
    goal = curve[-1]["validation_accuracy"]
    # The last accuracy may not be the first of its height: who is sooner must be sooner than that.
    spent = (reached(curve, goal) or curve[-1])["seconds"]
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
                f"{at['epoch']} epochs and {at['seconds']:.1f} s, {sooner} than that, "
                f"which was there after {spent:.1f} s"
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
    from .page import page

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
