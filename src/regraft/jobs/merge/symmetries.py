"""The symmetries that an alignment works with: traced, or of an earlier run and proved here."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .alignment import Alignment
from .gathered import Gathered
from .network import made

if TYPE_CHECKING:
    from regraft.symmetry.spec.spec import PermutationSpec


def symmetries(asked: Alignment, given: Gathered) -> tuple[PermutationSpec, dict[str, Any]]:
    """Trace the network, or read and prove the spec that is given; return it with its record.

    Raises:
        InputError: The network cannot be traced, or the spec cannot be read or is of another one.
    """
    from regraft.errors import InputError
    from regraft.symmetry.spec.printing import said
    from regraft.symmetry.spec.spec import PermutationSpec
    from regraft.symmetry.trace.trace import trace

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
    from regraft.symmetry.trace.check import SymmetryError, check

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

    model = given.model
    if model is None or given.config is None or not any(p.is_meta for p in model.parameters()):
        return model
    if sum(p.numel() for p in model.parameters()) > _PROVABLE:
        return None
    with torch.random.fork_rng(devices=[]):
        return made(given.config, given.shape)


def _fill_tied(given: Gathered, spec: PermutationSpec) -> None:
    """Give tensors that are stored under one of several tied names the others too.

    Raises:
        InputError: They are stored under several with different values.
    """
    from regraft.checkpoints.read import check_tied

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
