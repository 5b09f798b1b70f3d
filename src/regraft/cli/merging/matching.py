"""From gathered models to aligned ones: the spec, the matcher, and what it found."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.cli.progress import Bar

from .alignment import Alignment
from .gathered import Gathered
from .surrogate import held_out, surrogates

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.symmetry.match import Match
    from regraft.symmetry.permutation import Permutation
    from regraft.symmetry.spec import PermutationSpec


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
    from regraft.symmetry.lazy import Permuted

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
    spec, spec_record = _spec(asked, given)
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
    from regraft.symmetry.many import align_many

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


def _spec(asked: Alignment, given: Gathered) -> tuple[PermutationSpec, dict[str, Any]]:
    from regraft.errors import InputError
    from regraft.symmetry.printing import said
    from regraft.symmetry.spec import PermutationSpec
    from regraft.symmetry.trace import trace

    start = time.monotonic()
    if asked.spec is not None:
        try:
            text = asked.spec.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--spec {asked.spec} cannot be read ({error}): give the spec.json of an earlier run"
            ) from error
        try:
            spec = PermutationSpec.from_json(text)
        except InputError as error:
            raise InputError(f"--spec {asked.spec}: {error}") from error
        _fill_tied(given, spec)
        spec.check_state(given.states[0], str(asked.checkpoints[0]))
        spec = _proved(asked, given, spec)
    else:
        spec = trace(given.model, given.example)
    record = {
        "from": "trace" if asked.spec is None else str(asked.spec),
        "groups": len(spec),
        "free_share": spec.free_share,
        "pins": len(spec.pins),
        "checked": spec.checked,
        "seconds": time.monotonic() - start,
    }
    if spec.left_behind:
        given.notes.append(said(spec))
    return spec, record


_PROVABLE = 100_000_000
"""Parameters of a network that is built for a proof alone: six copies of them in float64 are 5 GB."""


def _proved(asked: Alignment, given: Gathered, spec: PermutationSpec) -> PermutationSpec:
    """Return a spec of an earlier run with a proof for this network, not the one it came with."""
    from regraft.errors import InputError
    from regraft.symmetry.check import SymmetryError, check

    try:
        model = _network(given)
        if model is not None:
            return replace(spec, checked=check(spec, model, given.example))
        given.notes.append(
            f"the symmetries of {asked.spec} were not proved here, for want of a network (--model names "
            f"one; one of over {_PROVABLE:,} parameters is not built for it): if they are those of "
            "another network with tensors of the same shapes, they change what the models compute"
        )
    except SymmetryError as error:
        raise InputError(
            f"--spec {asked.spec} is of another network ({error}): leave it out, so that this one is "
            "traced"
        ) from error
    except InputError as error:
        given.notes.append(f"the symmetries of {asked.spec} could not be proved here: {error}")
    return replace(spec, checked=None)


def _network(given: Gathered) -> Any:
    """Return the network; where only a sketch of it is there, it is built unless it is large."""
    import torch

    from regraft.models import build

    model = given.model
    if model is None or given.config is None or not any(p.is_meta for p in model.parameters()):
        return model
    if sum(p.numel() for p in model.parameters()) > _PROVABLE:
        return None
    with torch.random.fork_rng(devices=[]):
        return build(given.config, **given.shape)


def _fill_tied(given: Gathered, spec: PermutationSpec) -> None:
    """Give tensors that are stored under one of several tied names the others too.

    Raises:
        InputError: They are stored under several with different values.
    """
    from regraft.symmetry.checkpoint import check_tied

    ties: dict[str, list[str]] = {}
    for other, name in spec.aliases.items():
        ties.setdefault(name, [name]).append(other)
    for i, checkpoint in enumerate(given.checkpoints):
        check_tied(checkpoint, ties.values())
        names = {name: name for name in checkpoint}
        for other, name in spec.aliases.items():
            names.setdefault(other, names.get(name, other))
            names.setdefault(name, names[other])
        missing = [new for new, old in names.items() if new not in checkpoint and old in checkpoint]
        if missing:
            kept = {new: names[new] for new in [*checkpoint, *missing]}
            note = f"{checkpoint.path}: {', '.join(missing)} is tied to a tensor under another name"
            given.checkpoints[i] = checkpoint.renamed(kept, note)
            given.states[i] |= {new: checkpoint[names[new]] for new in missing}
            given.notes.append(note)


def _by_weights(
    asked: Alignment, given: Gathered, spec: PermutationSpec, a: Any, b: Any
) -> tuple[Permutation, dict[str, Any]]:
    from regraft.symmetry.match import match

    return _told(match(spec, a, b, seed=asked.seed))


def _by_activations(
    asked: Alignment, given: Gathered, spec: PermutationSpec, a: Any, b: Any
) -> tuple[Permutation, dict[str, Any]]:
    from regraft.symmetry.activations import Activations
    from regraft.symmetry.match import match

    batches = given.statistics(asked.samples, asked.batch_size, asked.seed)
    found, how = _told(match(spec, a, b, by=Activations(given.model, batches), seed=asked.seed))
    return found, {**how, "images": asked.samples}


def _by_ste(
    asked: Alignment, given: Gathered, spec: PermutationSpec, a: Any, b: Any
) -> tuple[Permutation, dict[str, Any]]:
    from regraft.symmetry.straight_through import StraightThrough, StraightThroughConfig

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
