"""From gathered models to aligned ones: the spec, the matcher, and what it found."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.jobs.progress import Bar

from .alignment import Alignment
from .gathered import Gathered
from .surrogate import held_out, surrogates
from .symmetries import symmetries

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.symmetry.match.match import Match
    from regraft.symmetry.spec.permutation import Permutation
    from regraft.symmetry.spec.spec import PermutationSpec


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
    base: dict[str, Tensor] | None
    record: dict[str, Any] = field(default_factory=dict)


def align(
    asked: Alignment,
    given: Gathered,
    *,
    heads: str = "shared",
    lazily: bool = False,
    one_by_one: bool = False,
) -> Aligned:
    """Align each model to the base, or to the first where there is none.

    Three and more without a base are aligned by weights each to the mean of the others, until none
    changes, in the frame of the first.

    Args:
        asked: The options.
        given: The models.
        heads: Whether the classifiers are shared.
        lazily: Return states that permute a tensor when it is asked for.
        one_by_one: Align three and more to the first alone, which takes the memory of two.

    Raises:
        InputError: The network cannot be traced, the spec is of another one, or the matcher cannot be
            used with these heads.
    """
    from regraft.errors import InputError
    from regraft.symmetry.spec.permuted import Permuted

    reference = len(given.states) - 1 if given.has_base else 0
    base = given.states[-1] if given.has_base else None
    if asked.match == "none":
        states = given.states[: given.models]
        return Aligned(None, [None] * len(states), states, base, {"by": "none"})
    if asked.match == "ste" and heads == "separate":
        raise InputError(
            "--match ste trains through one classifier and --heads separate keeps several: take --heads "
            "union"
        )
    spec, spec_record = symmetries(asked, given)
    several = asked.match == "weights" and not given.has_base and given.models > 2
    if several and not one_by_one:
        found, how = _together(asked, given, spec, reference)
    else:
        found, how = _each(asked, given, spec, reference)
    if several and one_by_one:
        given.notes.append(
            "each model was aligned to the first alone: without --stream three and more are aligned "
            "each to the mean of the others"
        )
    found = found[: given.models]
    states: list[Any] = []
    for state, permutation in zip(given.states, found, strict=False):
        if permutation is None:
            states.append(state)
        else:
            lazy = Permuted(spec, state, permutation)
            states.append(lazy if lazily else dict(lazy))
    record = {"by": asked.match, "spec": spec_record, "models": how[: given.models]}
    return Aligned(spec, found, states, base, record)


def _each(
    asked: Alignment, given: Gathered, spec: PermutationSpec, reference: int
) -> tuple[list[Permutation | None], list[dict[str, Any]]]:
    """Align every model to the reference on its own."""
    match = {"weights": _by_weights, "activations": _by_activations, "ste": _by_ste}[asked.match]
    found: list[Permutation | None] = []
    record: list[dict[str, Any]] = []
    for i, state in enumerate(given.states):
        if i == reference:
            found.append(None)
            record.append({"reference": True})
            continue
        start = time.monotonic()
        permutation, how = match(asked, given, spec, given.states[reference], state)
        found.append(permutation)
        how["to"] = "the base" if given.has_base else "model 1"
        record.append({**how, "seconds": time.monotonic() - start})
    return found, record


def _together(
    asked: Alignment, given: Gathered, spec: PermutationSpec, reference: int
) -> tuple[list[Permutation | None], list[dict[str, Any]]]:
    """Align every model to the mean of the others, in the frame of the reference."""
    from regraft.symmetry.match.many import align_many

    start = time.monotonic()
    found = align_many(spec, given.states, reference=reference, seed=asked.seed)
    how = {
        "to": "the mean of the others",
        "objective": found.objective,
        "sweeps": found.rounds,
        "converged": found.converged,
        "seconds": time.monotonic() - start,
    }
    permutations = [None if i == reference else p for i, p in enumerate(found.permutations)]
    record = [
        {"reference": True} if p is None else {**how, "moved": _moved(p)} for p in permutations
    ]
    return permutations, record


def _by_weights(
    asked: Alignment, given: Gathered, spec: PermutationSpec, a: Any, b: Any
) -> tuple[Permutation, dict[str, Any]]:
    from regraft.symmetry.match.match import match

    return _told(match(spec, a, b, seed=asked.seed))


def _by_activations(
    asked: Alignment, given: Gathered, spec: PermutationSpec, a: Any, b: Any
) -> tuple[Permutation, dict[str, Any]]:
    from regraft.symmetry.match.activations import Activations
    from regraft.symmetry.match.match import match

    batches = given.statistics(asked.samples, asked.batch_size, asked.seed)
    found, how = _told(match(spec, a, b, by=Activations(given.model, batches), seed=asked.seed))
    return found, {**how, "images": asked.samples}


def _by_ste(
    asked: Alignment, given: Gathered, spec: PermutationSpec, a: Any, b: Any
) -> tuple[Permutation, dict[str, Any]]:
    from regraft.symmetry.match.straight_through import StraightThrough, StraightThroughConfig

    batches, images = surrogates(asked, given)
    config = StraightThroughConfig(
        steps=asked.steps,
        lr=asked.lr,
        seed=asked.seed,
        score_every=max(1, asked.steps // 20),
    )
    run = StraightThrough(
        spec,
        given.model,
        a,
        b,
        batches,
        config,
        score=held_out(asked, given),
        schedule=lambda step: 0.5 * (1 + math.cos(math.pi * step / asked.steps)),
    )
    with Bar(enabled=not asked.json, describe=_loss) as bar:
        found = run.run(progress=bar.update)
    scores = [row["score"] for row in run.trace if "score" in row]
    how = {
        "surrogate": asked.surrogate,
        "images": images,
        "sweeps": asked.steps,
        "scores": scores,
        "best_step": run.at.best_step,
        "moved": _moved(found),
    }
    return found, how


def _loss(row: dict[str, float]) -> str:
    return f"loss {row['loss']:.3f}" if row else ""


def _told(found: Match) -> tuple[Permutation, dict[str, Any]]:
    how = {
        "objective": found.objective,
        "sweeps": found.sweeps,
        "moved": found.moved,
        "converged": found.converged,
        "unmatched": list(found.unmatched),
    }
    return found.permutation, how


def _moved(permutation: Permutation) -> float:
    """Return the share of units that are elsewhere."""
    import torch

    moved = sum(int((p != torch.arange(p.shape[-1])).sum()) for p in permutation.values())
    return moved / max(sum(p.numel() for p in permutation.values()), 1)


def write_alignment(out: Path, aligned: Aligned) -> list[str]:
    """Write the spec and the permutations, and return the names of the files.

    Each file holds, by group, what `spec.apply` takes: `permutation.safetensors` for the second of
    two models, `permutation-K.safetensors` for model K otherwise.
    """
    from regraft.files import write_tensors, write_text

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
