"""The card of a transfer: what was done, in words, as a table, and with its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.checkpoints.model_card import is_elsewhere
from regraft.report import ResultCard, Table, command_of

from .config import LABELS, TransferConfig
from .engine import TransferResult
from .figures import figures_of
from .networks import Networks
from .training import reached

CLOSER = 0.05
"""Gain of the cosine on batches that were not matched from which on the networks count as closer."""


def data_of(networks: Networks, config: TransferConfig, result: TransferResult) -> dict[str, Any]:
    """Return what was done and measured, for programs."""
    main = result.steps[config.match]
    trajectory, images = networks.trajectory, networks.images
    return {
        "data": None if images is None else images.describe(),
        "trajectory": {
            "origin": trajectory.origin,
            "steps": list(trajectory.steps),
            "error": trajectory.error,
        },
        "match": config.match,
        "gradient_batches": config.gradient_batches,
        "factor": config.factor,
        "curves": {} if images is None else {k: steps.rows for k, steps in result.steps.items()},
        "steps": main.rows,
        "seconds_of": {method: steps.seconds for method, steps in result.steps.items()},
        "best_step": main.best.step,
        "scores": _scores(result),
        "agreement": result.agreement,
        "against_naive": result.against_naive,
        "paths": result.paths,
        "plane": result.plane,
        "then_train": {
            arm: {key: value for key, value in run.items() if key != "result"}
            for arm, run in result.trained_on.items()
        }
        or None,
        "notes": [*networks.notes, *result.notes],
    }


def _scores(result: TransferResult) -> dict[str, dict[str, float]]:
    """Return the scores on all images: of the target at first, of every method, of both trained ends."""
    scores = dict(result.scores)
    if not scores:
        return {}
    first = {"target, untrained": scores.pop("target, untrained")}
    for method, steps in result.steps.items():
        if steps.best is not steps.last:
            first[f"{method}, best step ({steps.best.step})"] = steps.scores["best"]
        first[f"{method}, final step ({steps.last.step})"] = steps.scores["final"]
    return {**first, **scores}


def notes_of(data: dict[str, Any]) -> list[str]:
    """Return what the user should know of whether the transfer was worth it.

    Args:
        data: With `spec`, `steps`, `agreement`, `against_naive`, `data`, `match` and `curves`.
    """
    last, notes = data["steps"][-1], []
    agreed, measured = data["agreement"], data["against_naive"]
    if not data["spec"]["groups"]:
        notes.append(
            "nothing in this architecture can change places, so that every method is the naive transfer: "
            "spec.json says what pins each axis"
        )
    elif agreed is not None and agreed["gain"] < CLOSER:
        notes.append(
            "the permutation brings the two networks no closer: on batches that it was not matched on, "
            f"their gradients have a cosine of {agreed['plain']:.3f} as they are and of "
            f"{agreed['cosine']:.3f} permuted; expect no more than the naive transfer gives"
        )
    if data["spec"]["groups"] and measured is not None and not measured["above"]:
        notes.append(
            "the transferred network is not above the naive one by more than the sampling error: "
            f"{measured['accuracy']:.1f}% against {measured['naive']:.1f}% of {measured['images']} "
            f"{measured['part']} images, {measured['difference']:+.1f} ± {measured['error']:.1f} points"
        )
    notes += _beaten(data)
    if last["dead"]:
        notes.append(
            f"{len(last['dead'])} groups have no gradients in one of the networks and stay in place: "
            f"{', '.join(last['dead'][:3])}"
        )
    if data["data"] is None:
        notes.append(
            "without --data nothing was measured, so that it is not known whether the permutation helps, "
            "and BatchNorm statistics are the source's"
        )
    return notes


def _beaten(data: dict[str, Any]) -> list[str]:
    """Return what to say where a control that costs less ends above the method."""
    curves, method = data["curves"], data["match"]
    if method not in curves:
        return []
    own = curves[method][-1]["test_accuracy"]
    cheaper = {
        name: curves[name][-1]["test_accuracy"]
        for name in ("naive", "initial_weights")
        if name in curves and name != method
    }
    return [
        f"{LABELS[name]}, a control that takes no gradients, ends at {accuracy:.1f}% of the test images "
        f"and {LABELS[method]} at {own:.1f}%: --match {name} gives that transfer"
        for name, accuracy in cheaper.items()
        if accuracy > own
    ]


def card_of(out: Path, facts: dict[str, Any]) -> ResultCard:
    """Return the card of a transfer.

    Args:
        out: The result folder.
        facts: What `data_of` returns, with `source`, `to`, `model`, `spec`, `files` and `seconds`.
    """
    model = facts["model"]["name"] if is_elsewhere(facts["model"]["name"]) else None
    known = {
        "model-best": "the target at the step of the best validation accuracy",
        "model": "the target at the last step",
        "steps/": "the target at one step",
        "permutation": "how the source was permuted, by group: spec.apply(state, permutation)",
        "spec": "the symmetries: PermutationSpec.from_json",
        "split": "which images the networks and this transfer learnt from",
    }
    best = next((f for f in facts["files"] if f.startswith("model-best")), "model.safetensors")
    data = facts["data"]
    return ResultCard(
        kind="transfer",
        title="A transferred training run",
        summary=[
            facts["model"]["name"],
            f"by {LABELS[facts['match']]}",
            *([] if data is None else [data["name"]]),
        ],
        lines=_lines(facts),
        tables=[_scores_of(facts)] if facts["scores"] else [],
        figures=figures_of(facts) if facts["curves"] else [],
        notes=facts["notes"],
        files={f: next(v for k, v in known.items() if f.startswith(k)) for f in facts["files"]},
        next=[command_of("predict", out / best, "IMAGES", model=model)] if facts["ready"] else [],
        data={key: value for key, value in facts.items() if key not in ("notes", "files")},
    )


def _lines(data: dict[str, Any]) -> list[str]:
    """Return what was done and measured, a sentence each."""
    spec, steps = data["spec"], data["trajectory"]["steps"]
    lines = [
        f"{' and '.join(data['source'])} carried over to {data['to']} ({data['model']['name']}) by "
        f"{LABELS[data['match']]}",
        f"trajectory: {data['trajectory']['origin']}, steps {steps[1]} to {steps[-1]}",
    ]
    if data["trajectory"]["error"] > 1e-4:
        lines.append(
            f"its displacements are stored with an error of {100 * data['trajectory']['error']:.2g}%"
        )
    lines.append(
        f"symmetries: {spec['groups']} groups, {100 * spec['free_share']:.1f}% of the axes free to move"
    )
    last = data["steps"][-1]
    if last["cosine"] is not None:
        what = "gradients" if data["match"] in ("gmt", "fgmt") else "weights"
        lines.append(
            f"the {what} that were matched: cosine {last['cosine_before']:.3f} as the networks are, "
            f"{last['cosine']:.3f} permuted"
        )
    agreed = data["agreement"]
    if agreed is not None:
        lines.append(
            f"gradients on batches that were not: cosine {agreed['plain']:.3f} as the networks are, "
            f"{agreed['cosine']:.3f} permuted"
        )
    above = data["against_naive"]
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
    for name, curve in data["paths"].items():
        ends = {
            "permuted source": "from the permuted source",
            "trained target": "from the trained target",
            "between": "from the trained target to the permuted source",
        }[name]
        lines.append(
            f"barrier {ends}: {curve['loss_barrier']:.3f} nats, {curve['accuracy_barrier']:.1f} points"
        )
    return lines + training_lines(data["then_train"])


def training_lines(trained: dict[str, Any] | None) -> list[str]:
    """Return what training on gave from each start, and when it reaches what scratch does."""
    if not trained:
        return []
    lines = []
    curve = trained["scratch"]["curve"]
    goal = curve[-1]["validation_accuracy"]
    # The last accuracy may not be the first of its height: who is sooner must be sooner than that.
    spent = (reached(curve, goal) or curve[-1])["seconds"]
    for arm, run in trained.items():
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


def _scores_of(data: dict[str, Any]) -> Table:
    """Return the scores on all images."""
    tested = data["data"]["tested_on"]
    return Table(
        title="Scores",
        headings=["", "validation (%)", f"{tested} (%)", f"{tested} loss"],
        rows=[
            [
                name,
                f"{scores['validation_accuracy']:.2f}",
                f"{scores['test_accuracy']:.2f}",
                f"{scores['test_loss']:.4f}",
            ]
            for name, scores in data["scores"].items()
        ],
        note=f"On {data['data']['test_images']} {tested} images. The oracle knows how the target was "
        "really trained: it is the upper control.",
    )
