"""From models to aligned ones: the symmetries, the matching signal, and what it came to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from regraft.config import RuntimeConfig
from regraft.files import write_tensors, write_text
from regraft.jobs.stages import Shown, remark
from regraft.symmetry.match.activations import Activations
from regraft.symmetry.match.many import align_many
from regraft.symmetry.match.match import Match, match
from regraft.symmetry.spec.permutation import Permutation
from regraft.symmetry.spec.permuted import Permuted
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.train import RunFolder

from .config import AlignConfig
from .models import Models
from .straight_through import State, learn
from .symmetries import symmetries


@dataclass(eq=False)
class Aligned:
    """Models in one frame.

    Attributes:
        spec: The symmetries, None with --match none.
        permutations: That of every model; None for the one that stays.
        states: The aligned state dicts, of the models alone.
        base: The base model's, or None.
        record: How it was done, for the card.
    """

    spec: PermutationSpec | None
    permutations: list[Permutation | None]
    states: list[Any]
    base: State | None
    record: dict[str, Any] = field(default_factory=dict)


def align(
    config: AlignConfig,
    models: Models,
    folder: RunFolder,
    *,
    progress: Shown = None,
    lazily: bool = False,
    one_by_one: bool = False,
) -> Aligned:
    """Align each model to the base, or to the first where there is none.

    Three and more without a base are aligned by weights each to the mean of the others, until none
    changes, in the frame of the first.

    Args:
        config: The settings.
        models: The models and data.
        folder: Where straight-through matching keeps its state.
        progress: Called with the steps done, all steps, and the newest row.
        lazily: Return states that permute a tensor when it is read.
        one_by_one: Align three and more to the first alone, which takes the memory of two.

    Raises:
        InputError: The network cannot be traced, or the spec is of another one.
    """
    reference = len(models.states) - 1 if models.has_base else 0
    base = models.states[-1] if models.has_base else None
    if config.match == "none":
        states = models.states[: models.models]
        return Aligned(None, [None] * len(states), states, base, {"by": "none"})
    remark(progress, "finding the symmetries of the network, and proving them")
    spec, spec_record = symmetries(config, models)
    remark(progress, f"matching by {config.match}")
    several = config.match == "weights" and not models.has_base and models.models > 2
    if several and not one_by_one:
        permutations, record = _together(models, spec, reference, config.runtime.seed)
    else:
        permutations, record = _each(config, models, spec, reference, folder, progress)
    if several and one_by_one:
        models.notes.append(
            "each model was aligned to the first alone: without --stream three and more are aligned "
            "each to the mean of the others"
        )
    permutations = permutations[: models.models]
    states: list[Any] = []
    for state, permutation in zip(models.states, permutations, strict=False):
        if permutation is None:
            states.append(state)
        else:
            lazy = Permuted(spec, state, permutation)
            states.append(lazy if lazily else dict(lazy))
    how = {"by": config.match, "spec": spec_record, "models": record[: models.models]}
    return Aligned(spec, permutations, states, base, how)


def _each(
    config: AlignConfig,
    models: Models,
    spec: PermutationSpec,
    reference: int,
    folder: RunFolder,
    progress: Shown,
) -> tuple[list[Permutation | None], list[dict[str, Any]]]:
    """Align every model to the reference on its own."""
    permutations: list[Permutation | None] = []
    records: list[dict[str, Any]] = []
    a = models.states[reference]
    for i, b in enumerate(models.states):
        if i == reference:
            permutations.append(None)
            records.append({"reference": True})
            continue
        began = time.monotonic()
        if config.match == "ste":
            permutation, record = learn(
                config, models, spec, a, b, model=i, folder=folder, progress=progress
            )
        elif config.match == "activations":
            permutation, record = _by_activations(config, models, spec, a, b)
        else:
            permutation, record = _by_weights(spec, a, b, config.runtime)
        permutations.append(permutation)
        to = "the base" if models.has_base else "model 1"
        seconds = time.monotonic() - began
        records.append({"seconds": seconds, **record, "to": to, "moved": _moved(permutation)})
    return permutations, records


def _together(
    models: Models, spec: PermutationSpec, reference: int, seed: int
) -> tuple[list[Permutation | None], list[dict[str, Any]]]:
    """Align every model to the mean of the others, in the frame of the reference."""
    began = time.monotonic()
    aligned = align_many(spec, models.states, reference=reference, seed=seed)
    how = {
        "to": "the mean of the others",
        "objective": aligned.objective,
        "sweeps": aligned.rounds,
        "converged": aligned.converged,
        "seconds": time.monotonic() - began,
    }
    permutations = [None if i == reference else p for i, p in enumerate(aligned.permutations)]
    records = [
        {"reference": True} if p is None else {**how, "moved": _moved(p)} for p in permutations
    ]
    return permutations, records


def _by_weights(
    spec: PermutationSpec, a: State, b: State, runtime: RuntimeConfig
) -> tuple[Permutation, dict[str, Any]]:
    return _with_record(match(spec, a, b, seed=runtime.seed, workers=runtime.threads))


def _by_activations(
    config: AlignConfig, models: Models, spec: PermutationSpec, a: State, b: State
) -> tuple[Permutation, dict[str, Any]]:
    runtime = config.runtime
    batches = models.statistics(config.statistics_images, config.batch_size, runtime.seed)
    signal = Activations(models.model, batches)
    matched = match(spec, a, b, by=signal, seed=runtime.seed, workers=runtime.threads)
    permutation, record = _with_record(matched)
    return permutation, {**record, "images": models.images_of(config.statistics_images)}


def _with_record(matched: Match) -> tuple[Permutation, dict[str, Any]]:
    return matched.permutation, {
        "objective": matched.objective,
        "sweeps": matched.sweeps,
        "converged": matched.converged,
        "unmatched": list(matched.unmatched),
    }


def _moved(permutation: Permutation) -> float:
    """Return the share of units that are elsewhere."""
    moved = sum(int((p.cpu() != torch.arange(p.shape[-1])).sum()) for p in permutation.values())
    return moved / max(sum(p.numel() for p in permutation.values()), 1)


def write_alignment(out: Path, aligned: Aligned) -> list[str]:
    """Write the spec and the permutations, and return the names of the files.

    Each file holds, by group, what `spec.apply` takes: `permutation.safetensors` for the second of
    two models, `permutation-K.safetensors` for model K otherwise.
    """
    if aligned.spec is None:
        return []
    write_text(out / "spec.json", aligned.spec.to_json())
    moved = {i: p for i, p in enumerate(aligned.permutations, start=1) if p is not None}
    files = ["spec.json"]
    for i, permutation in moved.items():
        name = "permutation.safetensors" if list(moved) == [2] else f"permutation-{i}.safetensors"
        tensors = {k: v.to("cpu").contiguous().clone() for k, v in permutation.items()}
        write_tensors(out / name, tensors, {"regraft.permutation": "1", "of": f"model {i}"})
        files.append(name)
    return files
