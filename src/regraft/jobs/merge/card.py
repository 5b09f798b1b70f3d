"""The card of a merge or an alignment: what was done, in words, as tables and as curves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from regraft.checkpoints.model_card import EITHER, is_elsewhere
from regraft.config import to_dict
from regraft.report import Figure, Line, Panel, ResultCard, Table, command_of, lines
from regraft.report.wording import chosen_on_tested, size
from regraft.symmetry.merge.merge import is_statistic
from regraft.symmetry.merge.repair import FEW_IMAGES

from .align import Aligned
from .data import distinct
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
        classes = _shared_names(names)
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


def _shared_names(names: Sequence[Sequence[str]]) -> list[str] | None:
    """Return what the rows of one classifier are called: by every name that a model has for a row."""
    if not names or any(len(own) != len(names[0]) for own in names):
        return None
    return [EITHER.join(dict.fromkeys(row)) for row in zip(*names, strict=True)]


def facts_of(kind: str, models: Models, aligned: Aligned, more: dict[str, Any]) -> dict[str, Any]:
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
    images = more.get("repair", {}).get("images", 0)
    if fresh and images < FEW_IMAGES:
        notes.append(few_images(images))
    if kind == "merge" and models.classes and models.data:
        notes.append(
            "each model is scored with the rows of the classes that it knows: what it does not know has "
            "probability 0, whence no loss on such images; the logit ensemble has for each class the mean "
            "logit of the models that know it, each with its own row; merged models, and the curves from "
            "end to end, have a row for every class"
        )
    if kind == "merge" and not models.data:
        notes.append("without --data nothing was measured: no barrier, no scores, no repair")
    if kind == "merge":
        notes += _flattered(models, aligned)
    apart = more.get("merge", {}).get("heads") == "separate"
    return {
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
        "ready": ready(describe(models, model=0 if apart else None)),
        **more,
        "notes": notes,
    }


def _flattered(models: Models, aligned: Aligned) -> list[str]:
    """Return what to say where the images that scores are of chose the alignment."""
    chosen_on = {record.get("chosen_on") for record in aligned.record.get("models", ())}
    how = "straight-through matching chose its permutation"
    return [
        chosen_on_tested(data.splits.name, data.tested_on, how)
        for data in distinct(models.data, lambda data: data.images)
        if data.tested_on in chosen_on
    ]


def few_images(count: int) -> str:
    """Return what to say of BatchNorm statistics that come from few images."""
    return (
        f"BatchNorm statistics were taken from {count} images: below about {FEW_IMAGES} they cost accuracy "
        "and can be worse than none; give more images, or compare with --repair none"
    )


def ready(about: dict[str, Any]) -> bool:
    """Whether `regraft predict` learns from a header all that it needs."""
    needed = {"model", "classes", "input", "mean", "std"}
    return needed <= about.keys() and {"channels", "image_size"} <= about["input"].keys()


def card_of(kind: str, out: Path, facts: dict[str, Any]) -> ResultCard:
    """Return the card of a merge or an alignment.

    Args:
        kind: `merge` or `align`.
        out: The result folder.
        facts: What `facts_of` returns, with `files` and `seconds`; a merge has `merge` and `repair`, and
            with data `scores`, `curves` and `curve_images`.
    """
    count = sum(m["role"] != "base" for m in facts["models"])
    tables, figures = [], []
    if facts.get("scores"):
        tables.append(_scores(facts))
        for pair, curves in facts["curves"].items():
            title = f"From model {pair.replace('-', ' to model ')}"
            tables.append(_barriers(title, curves, facts["curve_images"]))
            figures += [
                Figure(title=title, content=partial(_curves, facts, pair, key), caption=caption)
                for key, caption in (("accuracy", "Accuracy"), ("loss", "Loss"))
            ]
    name = facts["model"]["name"] if facts["model"] else None
    how = facts["merge"]["method"] if kind == "merge" else "permuted"
    return ResultCard(
        kind=kind,
        title=f"A merge of {count} models" if kind == "merge" else f"{count} aligned models",
        summary=[*([name] if name else []), f"by {facts['match']['by']}", how],
        lines=_lines(facts),
        tables=tables,
        figures=figures,
        notes=facts["notes"],
        files={file: _described(file) for file in facts["files"]},
        next=_next(kind, out, facts),
        data={k: v for k, v in facts.items() if k not in ("notes", "files")},
    )


def _next(kind: str, out: Path, facts: dict[str, Any]) -> list[str]:
    """Return the command that uses the result; a network's own code has to be named to each."""
    config = facts["model"]
    model = config["name"] if config is not None and is_elsewhere(config["name"]) else None
    if kind == "align":
        first, *others = [Path(m["path"]) for m in facts["models"]]
        aligned = [out / file for file in facts["files"] if file.startswith("aligned")]
        if len(aligned) != len(others):
            return []
        where = str(out.absolute().with_name(f"{out.name}-merged"))
        return [command_of("merge", first, *aligned, match="none", out=where, model=model)]
    if not facts["ready"]:
        return []
    files = [file for file in facts["files"] if file.startswith("model") and file.endswith("rs")]
    return [command_of("predict", out / file, "IMAGES", model=model) for file in files]


def _described(file: str) -> str:
    known = {
        "model": "the merged weights",
        "aligned": "a model in the frame of the first",
        "permutation": "what was moved where, by group: spec.apply(state, permutation)",
        "spec": "the symmetries: PermutationSpec.from_json",
        "condensed": "the condensed images that were learnt from",
        "split": "which images the models and this result learnt from",
    }
    carried = "carried over from the first model"
    return next((what for start, what in known.items() if file.startswith(start)), carried)


def _lines(facts: dict[str, Any]) -> list[str]:
    """Return what was done, a sentence each."""
    said = [_models(facts), *_alignment(facts["match"])]
    merge = facts.get("merge")
    if merge:
        said.append(_merge(merge))
        said.append(_repair(facts["repair"]))
    for pair, curves in facts.get("curves", {}).items():
        models = " and ".join(pair.split("-"))
        barriers = "; ".join(
            f"{label} {curve['loss_barrier']:.3f} nats, {curve['accuracy_barrier']:.1f} points"
            for label, curve in curves.items()
        )
        said.append(f"barrier between models {models}: {barriers}")
    return said


def _models(facts: dict[str, Any]) -> str:
    paths = [m["path"] for m in facts["models"] if m["role"] != "base"]
    each = size(facts["models"][0]["bytes"])
    kind = f"{facts['model']['name']}, " if facts["model"] else ""
    return f"models: {', '.join(paths)} ({kind}{each} each)"


def _alignment(match: dict[str, Any]) -> list[str]:
    if match["by"] == "none":
        return ["alignment: none, the models were taken as they are"]
    spec = match["spec"]
    proof = "not checked" if spec["checked"] is None else f"proved to {spec['checked']:.0e}"
    said = [
        f"symmetries: {spec['groups']} groups, {100 * spec['free_share']:.1f}% of the axes free to "
        f"move, {proof}"
    ]
    for i, how in enumerate(match["models"], start=1):
        if how.get("reference"):
            continue
        objective = how.get("objective") or []
        rose = f", objective {objective[0]:.4g} -> {objective[-1]:.4g}" if objective else ""
        count = f"{how['sweeps']} {'steps' if match['by'] == 'ste' else 'sweeps'}"
        said.append(
            f"model {i} aligned to {how['to']} by {match['by']}: {count}{rose}{_learnt(how)}, "
            f"{100 * how['moved']:.0f}% of the units moved"
        )
    return said


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


def _scores(facts: dict[str, Any]) -> Table:
    """Return the scores; one column for each data set where there are several."""
    names = [d["name"] for d in facts["data"]]
    scores = facts["scores"]
    parts = len(next(iter(scores.values()))["accuracies"])
    if len(names) != parts:  # one set for several classifiers, or the same set named twice
        names = list(dict.fromkeys(names))
    if len(names) != parts:
        names = [f"classifier {i + 1}" for i in range(parts)]
    several = parts > 1
    tested = (f"{d['test_images']} {d['tested_on']} images of {d['name']}" for d in facts["data"])
    return Table(
        title="Scores",
        headings=["", *(f"{n} (%)" for n in names if several), "accuracy (%)", "loss"],
        rows=[
            [
                name,
                *(f"{a:.2f}" for a in score["accuracies"] if several),
                f"{score['accuracy']:.2f}",
                "-" if score["loss"] is None else f"{score['loss']:.4f}",
            ]
            for name, score in scores.items()
        ],
        note=f"On {', '.join(tested)}. The ensemble of the logits costs as much as all models together: "
        "it is the upper control.",
    )


def _barriers(title: str, curves: dict[str, Any], images: int) -> Table:
    return Table(
        title=title,
        caption="Barriers",
        headings=[
            "", "Accuracy at 1/2 (%)", "Loss barrier (nats)", "Accuracy barrier (points)"
        ],
        rows=[
            [
                label,
                f"{curve['middle']['accuracy']:.1f}",
                f"{curve['loss_barrier']:.3f}",
                f"{curve['accuracy_barrier']:.1f}",
            ]
            for label, curve in curves.items()
        ],
        note=f"On at most {images} images of each data set. A barrier is the largest height of the loss "
        "above, or depth of the accuracy below, the straight line between the ends.",
    )  # fmt: skip


def _curves(facts: dict[str, Any], pair: str, key: str) -> str:
    drawn = [
        Line(label=label, x=curve["at"], y=[score[key] for score in curve["scores"]])
        for label, curve in facts["curves"][pair].items()
    ]
    both = facts["scores"].get("logit ensemble")
    if both is not None:
        drawn.append(Line(label="logit ensemble", x=[0.0, 1.0], y=[both[key]] * 2))
    unit = "%" if key == "accuracy" else "nats"
    return lines(
        [Panel(title="", lines=drawn)],
        x_label=f"Share of model {pair.split('-')[1]}",
        y_label=f"{key.capitalize()} ({unit})",
    )
