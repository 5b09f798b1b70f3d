"""What a fine-tuning leaves in its folder: the model, its classes, its figures, its card and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from regraft.checkpoints.write import write_model
from regraft.config import ModelConfig, to_dict
from regraft.data import Splits
from regraft.errors import printable
from regraft.files import write_json, write_text
from regraft.jobs.verb import write
from regraft.train import evaluation, fit_temperature, outputs

from .choice import Selected
from .folds import FEWEST
from .start import Start


def about_of(model: ModelConfig, method: str, splits: Splits, start: Start) -> dict[str, Any]:
    """Return what the model's file says it is of: how to build it and what to feed it."""
    return {
        "model": to_dict(start.config or model),
        "input": {"channels": splits.channels, "image_size": splits.image_size},
        "mean": list(splits.mean),
        "std": list(splits.std),
        "classes": list(splits.classes),
        "data": splits.name,
        "method": method,
        "start": list(start.notes),
    }


def write_result(path: Path, chosen: Selected, about: dict[str, Any]) -> dict[str, Any]:
    """Measure the network that is kept, write everything about it, and return the run's result."""
    from regraft.report.finetuned import card_of

    tuner, splits = chosen.tuner, chosen.tuner.splits
    batches, classes = tuner.batches, splits.classes
    model = chosen.model.to(tuner.fabric.device)
    logits, labels = chosen.validation
    enough = len(labels) >= FEWEST
    temperature = fit_temperature(logits, labels) if enough else 1.0
    about |= {"temperature": temperature}
    judged = {"validation": evaluation(logits, labels, classes, temperature=temperature)}
    if batches.test is not None:
        logits, labels = outputs(model, batches.test, fabric=tuner.fabric)
        judged["test"] = evaluation(logits, labels, classes, temperature=temperature)
    write_model(path / "model.safetensors", model, about)
    write_text(path / "classes.txt", "".join(f"{line_of(name)}\n" for name in classes))
    write_json(path / "evaluation.json", judged)
    searched = {**chosen.searched, "basis": chosen.basis}
    result = chosen.result | {"chosen": searched["chosen"], "optimizer": tuner.optim.optimizer}
    metrics = dict(result["metrics"])
    for split, figures in judged.items():
        names = ("balanced_accuracy", "calibration_error")
        metrics |= {f"{split}_{k}": figures[k] for k in names}
        for name in ("accuracy", "loss"):  # the loss that training saw, where it saw these images
            uncalibrated = figures if name == "accuracy" else figures["uncalibrated"]
            metrics.setdefault(f"{split}_{name}", uncalibrated[name])
    metrics["temperature"] = temperature
    counts = {
        part: {name: int(n) for name, n in zip(classes, _counts(splits, part), strict=True)}
        for part in ("train", "validation", "test")
        if getattr(splits, part) is not None
    }
    whole = {**result, "metrics": metrics}
    write_json(path / "search.json", searched)
    facts = {"about": about, "result": whole, "search": searched, "images": counts}
    write(path, card_of(path, facts, judged))
    stored = (path / "model.safetensors").stat().st_size
    return {
        **result,
        "metrics": metrics,
        "stored_bytes": stored,
        "judged": {split: figures["images"] for split, figures in judged.items()},
        "images": {k: sum(v.values()) for k, v in counts.items()},
    }


def _counts(splits: Splits, part: str) -> list[int]:
    labels = getattr(splits, part).labels
    return torch.bincount(labels, minlength=splits.num_classes).tolist()


def line_of(name: str) -> str:
    """Return a class's name as one line of text, whatever characters are in it."""
    return printable(name).replace("\n", "\\n")
