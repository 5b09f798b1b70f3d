"""What a merge or an alignment says of itself: the card as JSON, in words, and as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.config import to_dict
from regraft.report import cards
from regraft.report.wording import size
from regraft.symmetry.merge.merge import is_statistic
from regraft.train import command_line
from regraft.train.environment import environment

from . import page as pages
from .align import Aligned
from .models import Models

State = dict[str, Any]


def describe(models: Models, *, model: int | None = None) -> dict[str, Any]:
    """Return what the merged file says it is of, so that it can be built and fed again.

    Args:
        models: The models.
        model: The model whose own classifier the file has, None for all in one.
    """
    if models.config is None:
        return dict(models.about)
    about: dict[str, Any] = {
        "model": to_dict(models.config),
        "input": {k: models.shape[k] for k in ("channels", "image_size") if k in models.shape},
    }
    names = models.names or []
    if model is not None:
        classes = names[model] if names else None
    elif models.classes:
        classes = models.classes
    else:
        classes = names[0] if names and all(own == names[0] for own in names) else None
    if classes:
        about["classes"] = list(classes)
    data = models.data
    if model is not None and (models.apart or len(data) > 1):
        data = [(models.apart or data)[model]]
    if data and all((d.mean, d.std) == (data[0].mean, data[0].std) for d in data):
        about |= {"mean": list(data[0].mean), "std": list(data[0].std)}
    elif not data:
        about |= {k: models.about[k] for k in ("mean", "std") if k in models.about}
    if data:
        about["data"] = "+".join(dict.fromkeys(d.splits.name for d in data))
    return about


def make_card(kind: str, models: Models, aligned: Aligned, more: dict[str, Any]) -> dict[str, Any]:
    """Return what was done, as JSON.

    Args:
        kind: `merge` or `align`.
        models: The models and data.
        aligned: How they were aligned.
        more: Further entries.
    """
    notes = list(models.notes)
    statistics = [name for name in models.states[0] if is_statistic(name)]
    fresh = more.get("repair", {}).get("norms", 0) > 0
    if kind == "merge" and statistics and not fresh:
        notes.append(
            f"the running statistics ({statistics[0]} and {len(statistics) - 1} more) are averages of "
            "those of the models and need a reset before use: merge again with --data, or call "
            "regraft.symmetry.reset_batch_norm_(model, batches)"
        )
    if kind == "merge" and models.classes and models.data:
        notes.append(
            "each model is scored with the rows of the classes that it knows: what it does not know has "
            "probability 0, whence no loss on such images; the logit ensemble has for each class the mean "
            "logit of the models that know it, each with its own row; merged models, and the curves from "
            "end to end, have a row for every class"
        )
    if kind == "merge" and not models.data:
        notes.append("without --data nothing was measured: no barrier, no scores, no repair")
    return {
        "kind": kind,
        "command": command_line(),
        "environment": environment(),
        "models": [
            {
                "path": str(checkpoint.path),
                "role": "base" if models.has_base and i == models.models else f"model {i + 1}",
                "bytes": checkpoint.nbytes,
                "tensors": len(checkpoint),
                "dtypes": sorted({str(t.dtype)[6:] for t in checkpoint.sketch.values()}),
                "classes": models.counts[i] if models.counts else None,
            }
            for i, checkpoint in enumerate(models.checkpoints)
        ],
        "model": None if models.config is None else to_dict(models.config),
        "shape": models.shape,
        "data": [
            {
                "name": d.splits.name,
                "train_images": len(d.splits.train),
                "tested_on": d.tested_on,
                "test_images": len(d.test),
                "mean": list(d.mean),
                "std": list(d.std),
            }
            for d in models.data
        ],
        "match": aligned.record,
        **more,
        "notes": notes,
    }


def summary(card: dict[str, Any]) -> list[str]:
    """Return what was done, a sentence each."""
    lines = [_models(card), *_alignment(card["match"])]
    merge = card.get("merge")
    if merge:
        lines.append(_merge(merge))
        lines.append(_repair(card["repair"]))
    for pair, curves in card.get("curves", {}).items():
        models = " and ".join(pair.split("-"))
        barriers = "; ".join(
            f"{label} {curve['loss_barrier']:.3f} nats, {curve['accuracy_barrier']:.1f} points"
            for label, curve in curves.items()
        )
        lines.append(f"barrier between models {models}: {barriers}")
    return [*lines, *(f"note: {note}" for note in card["notes"])]


def _models(card: dict[str, Any]) -> str:
    paths = [m["path"] for m in card["models"] if m["role"] != "base"]
    each = size(card["models"][0]["bytes"])
    kind = f"{card['model']['name']}, " if card["model"] else ""
    return f"models: {', '.join(paths)} ({kind}{each} each)"


def _alignment(match: dict[str, Any]) -> list[str]:
    if match["by"] == "none":
        return ["alignment: none, the models were taken as they are"]
    spec = match["spec"]
    proof = "not checked" if spec["checked"] is None else f"proved to {spec['checked']:.0e}"
    lines = [
        f"symmetries: {spec['groups']} groups, {100 * spec['free_share']:.1f}% of the axes free to "
        f"move, {proof}"
    ]
    for i, how in enumerate(match["models"], start=1):
        if how.get("reference"):
            continue
        objective = how.get("objective") or []
        rose = f", objective {objective[0]:.4g} -> {objective[-1]:.4g}" if objective else ""
        count = f"{how['sweeps']} {'steps' if match['by'] == 'ste' else 'sweeps'}"
        lines.append(
            f"model {i} aligned to {how['to']} by {match['by']}: {count}{rose}{_learnt(how)}, "
            f"{100 * how['moved']:.0f}% of the units moved"
        )
    return lines


def _learnt(how: dict[str, Any]) -> str:
    """Return what straight-through matching learnt from, and how far it came."""
    if "scores" not in how:
        return ""
    images = " and ".join(f"{i['images']} images of {i['data']}" for i in how["images"])
    kind = "" if how["surrogate"] == "full" else f" ({how['surrogate']})"
    first, best = how["scores"][0], min(how["scores"])
    return f" on {images}{kind}, loss of the middle {first:.3f} -> {best:.3f}"


def _merge(merge: dict[str, Any]) -> str:
    options = {**merge["options"], **({"weights": merge["weights"]} if merge["weights"] else {})}
    said = ", ".join(f"{k}={v}" for k, v in options.items())
    base = f" from {merge['base']}" if merge["base"] else ""
    heads = "" if merge["heads"] == "shared" else f", classifiers: {merge['heads']}"
    return f"merged: {merge['method']}{f' ({said})' if said else ''}{base}{heads}"


def _repair(repair: dict[str, Any]) -> str:
    if repair["mode"] == "none":
        return f"not repaired: {repair['reason']}"
    images = f"from {repair['images']} images, because {repair['reason']}"
    if repair["mode"] == "reset":
        return f"repaired: statistics of {repair['norms']} BatchNorms taken anew {images}"
    only = f" ({len(repair['scaled_only'])} have no bias and got the deviation alone)"
    again = len(repair.get("reused", ()))
    left = f"; {again} that run several times or share weights are as the merge left them"
    return (
        f"repaired: REPAIR of {len(repair['layers'])} layers {images}"
        f"{only if repair['scaled_only'] else ''}{left if again else ''}"
    )


def score_table(card: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines of the scores; one column for each data set where there are several."""
    names = [d["name"] for d in card["data"]]
    scores = card["scores"]
    parts = len(next(iter(scores.values()))["accuracies"])
    if len(names) != parts:  # one set for several classifiers, or the same set named twice
        names = list(dict.fromkeys(names))
    if len(names) != parts:
        names = [f"classifier {i + 1}" for i in range(parts)]
    several = parts > 1
    headings = ["", *(f"{n} (%)" for n in names if several), "accuracy (%)", "loss"]
    lines = [
        [
            name,
            *(f"{a:.2f}" for a in score["accuracies"] if several),
            f"{score['accuracy']:.2f}",
            "-" if score["loss"] is None else f"{score['loss']:.4f}",
        ]
        for name, score in scores.items()
    ]
    return headings, lines


def write_documents(out: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Write README.md and, where its parts are installed, report.html; return the card with them."""
    return cards.write_documents(
        out, card, page=_page if card.get("scores") else None, about=_readme
    )


def _page(card: dict[str, Any]) -> str:
    return pages.page(card, summary(card), score_table(card))


def _readme(card: dict[str, Any]) -> str:
    return cards.readme(
        "A merged model" if card["kind"] == "merge" else "Aligned models",
        summary(card),
        table=score_table(card) if card.get("scores") else None,
        files=card["files"],
        known={
            "model": "the merged weights",
            "aligned": "the second model in the frame of the first",
            "permutation": "what was moved where, by group: `spec.apply(state, permutation)`",
            "spec": "the symmetries: `PermutationSpec.from_json`",
            "report": "scores and interpolation curves",
            "condensed": "the condensed images that were learnt from",
            "card": "all of this for programs; it is written last",
        },
        command=card["command"],
    )
