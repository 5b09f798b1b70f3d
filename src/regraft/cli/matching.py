"""From gathered models to aligned ones: the spec, the matcher, and what it found."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .alignment import Alignment
from .gathered import Gathered

if TYPE_CHECKING:
    from torch import Tensor

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


def align(asked: Alignment, given: Gathered, *, lazily: bool = False) -> Aligned:
    """Align all models to the base, or to the first where there is none.

    Args:
        asked: The options.
        given: The models.
        lazily: Return states that permute a tensor when it is asked for.

    Raises:
        InputError: The network cannot be traced, or the spec is of another one.
    """
    from regraft.symmetry.lazy import Permuted

    reference = len(given.states) - 1 if given.has_base else 0
    base = given.states[-1] if given.has_base else None
    if asked.match == "none":
        states = given.states[: given.models]
        return Aligned(None, [None] * len(states), states, base, {"by": "none"})
    spec, spec_record = _spec(asked, given)
    record: dict[str, Any] = {"by": asked.match, "spec": spec_record, "models": []}
    permutations: list[Permutation | None] = []
    states: list[Any] = []
    for i in range(given.models):
        if i == reference:
            permutations.append(None)
            states.append(given.states[i])
            record["models"].append({"reference": True})
            continue
        start = time.monotonic()
        found, how = _match(asked, given, spec, given.states[reference], given.states[i])
        permutations.append(found)
        state = given.states[i]
        states.append(Permuted(spec, state, found) if lazily else spec.apply(state, found))
        record["models"].append({**how, "seconds": time.monotonic() - start})
    return Aligned(spec, permutations, states, base, record)


def _spec(asked: Alignment, given: Gathered) -> tuple[PermutationSpec, dict[str, Any]]:
    from regraft.errors import InputError
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
        spec.check_state(given.states[0], str(asked.checkpoints[0]))
    else:
        spec = trace(given.model, given.example.to(given.device))
    record = {
        "from": "trace" if asked.spec is None else str(asked.spec),
        "groups": len(spec),
        "free_share": spec.free_share,
        "pins": len(spec.pins),
        "checked": spec.checked,
        "seconds": time.monotonic() - start,
    }
    return spec, record


def _match(
    asked: Alignment,
    given: Gathered,
    spec: PermutationSpec,
    a: dict[str, Tensor],
    b: dict[str, Tensor],
) -> tuple[Permutation, dict[str, Any]]:
    from regraft.symmetry.match import match

    found = match(spec, a, b, by="weights", seed=asked.seed)
    how = {
        "objective": found.objective,
        "sweeps": found.sweeps,
        "moved": found.moved,
        "converged": found.converged,
        "unmatched": list(found.unmatched),
    }
    return found.permutation, how


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
