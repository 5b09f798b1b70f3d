"""The symmetries that an alignment works with: traced, or of an earlier run and proved here."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from regraft.checkpoints.read import check_tied
from regraft.config import digest, to_dict
from regraft.errors import InputError
from regraft.symmetry.spec.printing import said
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.trace.check import SymmetryError, check
from regraft.symmetry.trace.trace import trace

from .config import AlignConfig
from .models import Models
from .network import made

_traces: dict[str, PermutationSpec] = {}


def symmetries(config: AlignConfig, models: Models) -> tuple[PermutationSpec, dict[str, Any]]:
    """Trace the network, or read and prove the spec that is given; return it with its record.

    Raises:
        InputError: The network cannot be traced, or the spec cannot be read or is of another one.
    """
    start = time.monotonic()
    if config.spec is not None:
        try:
            text = config.spec.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"--spec {config.spec} cannot be read ({error}): give the spec.json of an earlier run"
            ) from error
        try:
            spec = PermutationSpec.from_json(text)
        except InputError as error:
            raise InputError(f"--spec {config.spec}: {error}") from error
        _fill_tied(models, spec)
        spec.check_state(models.states[0], str(config.checkpoints[0]))
        spec = _proved(config, models, spec)
    else:
        spec = _traced(models)
    record = {
        "from": "trace" if config.spec is None else str(config.spec),
        "groups": len(spec),
        "free_share": spec.free_share,
        "pins": len(spec.pins),
        "checked": spec.checked,
        "seconds": time.monotonic() - start,
    }
    if spec.left_behind:
        models.notes.append(said(spec))
    return spec, record


def _traced(models: Models) -> PermutationSpec:
    """Trace the network; one of our own is traced once in a process, for the runs of a recipe."""
    config = models.config
    # What a name of somebody else's code stands for may change, and its warnings are for each run.
    if config is None or models.inputs is not None or "/" in config.name or ":" in config.name:
        return trace(models.model, models.example)
    key = digest({"model": to_dict(config), "shape": models.shape, "device": str(models.device)})
    if key not in _traces:
        _traces[key] = trace(models.model, models.example)
    return _traces[key]


_PROVABLE = 100_000_000
"""Parameters of a network that is built for a proof alone: six copies of them in float64 are 5 GB."""


def _proved(config: AlignConfig, models: Models, spec: PermutationSpec) -> PermutationSpec:
    """Return a spec of an earlier run with a proof for this network, not the one it came with."""
    try:
        model = _network(models)
        if model is not None:
            return replace(spec, checked=check(spec, model, models.example))
        models.notes.append(
            f"the symmetries of {config.spec} were not proved here, for want of a network (--model names "
            f"one; one of over {_PROVABLE:,} parameters is not built for it): if they are those of "
            "another network with tensors of the same shapes, they change what the models compute"
        )
    except SymmetryError as error:
        raise InputError(
            f"--spec {config.spec} is of another network ({error}): leave it out, so that this one is "
            "traced"
        ) from error
    except InputError as error:
        models.notes.append(f"the symmetries of {config.spec} could not be proved here: {error}")
    return replace(spec, checked=None)


def _network(models: Models) -> Any:
    """Return the network; where only a sketch of it is there, it is built unless it is large."""
    model = models.model
    if model is None or models.config is None or not any(p.is_meta for p in model.parameters()):
        return model
    if sum(p.numel() for p in model.parameters()) > _PROVABLE:
        return None
    with torch.random.fork_rng(devices=[]):
        return made(models.config, models.shape)


def _fill_tied(models: Models, spec: PermutationSpec) -> None:
    """Give tensors that are stored under one of several tied names the others too.

    Raises:
        InputError: They are stored under several with different values.
    """
    ties: dict[str, list[str]] = {}
    for other, name in spec.aliases.items():
        ties.setdefault(name, [name]).append(other)
    for i, checkpoint in enumerate(models.checkpoints):
        check_tied(checkpoint, ties.values())
        names = {name: name for name in checkpoint}
        for other, name in spec.aliases.items():
            names.setdefault(other, names.get(name, other))
            names.setdefault(name, names[other])
        missing = [new for new, old in names.items() if new not in checkpoint and old in checkpoint]
        if missing:
            kept = {new: names[new] for new in [*checkpoint, *missing]}
            note = f"{checkpoint.path}: {', '.join(missing)} is tied to a tensor under another name"
            models.checkpoints[i] = checkpoint.renamed(kept, note)
            models.states[i] |= {new: checkpoint[names[new]] for new in missing}
            models.notes.append(note)
