"""What a fine-tuning leaves in its folder: the model, its classes, its figures, its card and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regraft.checkpoints.model_card import header
from regraft.config import ModelConfig, to_dict
from regraft.data import Splits
from regraft.errors import InputError
from regraft.files import write_tensors, write_text
from regraft.jobs.verb import write
from regraft.train import evaluation, fit_temperature, outputs

from .engine import Tuner
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


def write_result(
    path: Path,
    model: nn.Module,
    tuner: Tuner,
    splits: Splits,
    about: dict[str, Any],
    result: dict[str, Any],
    searched: dict[str, Any],
) -> dict[str, Any]:
    """Measure the selected network, write everything about it, and return what the result adds."""
    from regraft.report.finetuned import card_of

    batches, classes = tuner.batches, splits.classes
    model = model.to(tuner.fabric.device)
    held_out = batches.validation
    if held_out is None:
        raise InputError("there are no validation images: hold some out")
    logits, labels = outputs(model, held_out, fabric=tuner.fabric)
    temperature = fit_temperature(logits, labels)
    about |= {"temperature": temperature}
    found = {"validation": evaluation(logits, labels, classes, temperature=temperature)}
    if batches.test is not None:
        logits, labels = outputs(model, batches.test, fabric=tuner.fabric)
        found["test"] = evaluation(logits, labels, classes, temperature=temperature)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    write_tensors(path / "model.safetensors", tensors, header(about))
    write_text(path / "classes.txt", "".join(f"{name}\n" for name in classes))
    write_text(path / "evaluation.json", json.dumps(found, indent=2) + "\n")
    metrics = dict(result["metrics"])
    for split, figures in found.items():
        metrics |= {f"{split}_{k}": figures[k] for k in ("balanced_accuracy", "calibration_error")}
    metrics["temperature"] = temperature
    counts = {
        part: {name: int(n) for name, n in zip(classes, _counts(splits, part), strict=True)}
        for part in ("train", "validation", "test")
        if getattr(splits, part) is not None
    }
    whole = {**result, "metrics": metrics}
    facts = {"about": about, "result": whole, "search": searched, "images": counts}
    write(path, card_of(path, facts, found))
    stored = (path / "model.safetensors").stat().st_size
    return {
        "metrics": metrics,
        "stored_bytes": stored,
        "images": {k: sum(v.values()) for k, v in counts.items()},
    }


def _counts(splits: Splits, part: str) -> list[int]:
    labels = getattr(splits, part).labels
    return torch.bincount(labels, minlength=splits.num_classes).tolist()
