"""The state of an unfinished condensation as a file, and what tells one condensation from another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regraft.errors import InputError
from regraft.files import reading, write_tensors

from .condensed_set import read_own

SCHEMA = 1
_KIND = "condensation under way"


def signature(network: nn.Module) -> str:
    """Return 16 hex digits for the names and shapes of a network's parameters."""
    shapes = {name: list(p.shape) for name, p in network.named_parameters()}
    text = json.dumps([type(network).__name__, shapes])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def refuse_other(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a state whose identity is not the wanted one.

    Raises:
        InputError: They differ; the message says in what.
    """
    for key, value in wanted.items():
        if before.get(key) != value:
            raise InputError(
                f"the checkpoint is of another condensation ({_difference(key, before, value)}): "
                "give another place, or remove it to start again"
            )


def _difference(key: str, before: Mapping[str, Any], wanted: Any) -> str:
    value = before.get(key)
    if isinstance(wanted, dict) and isinstance(value, dict):
        name = next(k for k in {**value, **wanted} if value.get(k) != wanted.get(k))
        return f"{name} was {value.get(name)!r}, now {wanted.get(name)!r}"
    return f"{key} was {value!r:.60}, now {wanted!r:.60}"


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write what `Condenser.state_dict` returned, whole or not at all.

    Raises:
        RegraftError: The file cannot be written.
    """
    tensors = {k: state[k].cpu().contiguous() for k in ("images", "velocity")}
    tensors["losses"] = torch.tensor(state["losses"], dtype=torch.float64)
    header = {
        "kind": _KIND,
        "schema": SCHEMA,
        "seconds": state["seconds"],
        "identity": state["identity"],
    }
    write_tensors(path, tensors, {"regraft": json.dumps(header)})


def read_state(path: Path) -> dict[str, Any]:
    """Read what `write_state` wrote.

    Raises:
        InputError: The file is no such state, damaged, or from a newer schema.
    """
    header, tensors = read_own(path, _KIND, SCHEMA)
    with reading(path, "remove it to start again"):
        return {
            "images": tensors["images"],
            "velocity": tensors["velocity"],
            "losses": tensors["losses"].tolist(),
            "seconds": header["seconds"],
            "identity": dict(header["identity"]),
        }
