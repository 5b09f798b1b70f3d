"""Any state tree as one safetensors file, written atomically and read without pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.files import DIGEST, parse_json, read_tensors, reading, write_tensors

SCHEMA = 1


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a tree of dicts, lists, tensors, numbers, strings, bools and None to one file.

    The structure goes into the header as JSON, the tensors into the body; tensors that share memory
    are stored once. Either the whole new file is there afterwards or the old one.

    Raises:
        TypeError: A leaf of another type, or a key that is neither text nor an integer.
        RegraftError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    known: dict[tuple[Any, ...], str] = {}
    tree = json.dumps(_pack(state, "", tensors, known))
    write_tensors(path, tensors, {"schema": str(SCHEMA), "tree": tree})


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        InputError: The file is damaged, is not such a file, or comes from a newer schema.
    """
    with reading(path, "delete the folder to start again"):
        metadata, tensors = read_tensors(path, ours=False)
        if "tree" not in metadata:
            raise InputError(f"{path} is not a Regraft state file: its header has no tree")
        if DIGEST not in metadata:
            raise ValueError("its digest is missing")
        if int(metadata["schema"]) > SCHEMA:
            raise InputError(
                f"{path} has schema {metadata['schema']}, this version reads up to {SCHEMA}: "
                "update regraft"
            )
        return _unpack(parse_json(metadata["tree"]), tensors)


def _pack(
    node: Any, path: str, tensors: dict[str, Tensor], known: dict[tuple[Any, ...], str]
) -> Any:
    if isinstance(node, Tensor):
        place = (node.data_ptr(), tuple(node.shape), node.stride(), node.dtype, str(node.device))
        key = known.get(place) if node.numel() else None
        if key is None:
            # The number keeps apart what the path does not: the keys 1 and "1", a "/" in a key.
            key = known[place] = f"{len(tensors)}:{path}"
            tensors[key] = node.detach().cpu().contiguous().clone()
        return {"t": key}
    if isinstance(node, dict):
        for key in node:
            if not isinstance(key, str | int):
                raise TypeError(f"state at {path or '/'} has the key {key!r}: use text or integers")
        return {"d": [[k, _pack(v, f"{path}/{k}", tensors, known)] for k, v in node.items()]}
    if isinstance(node, list | tuple):
        return {"l": [_pack(v, f"{path}/{i}", tensors, known) for i, v in enumerate(node)]}
    if node is None or isinstance(node, bool | int | float | str):
        return {"v": node}
    raise TypeError(f"state at {path or '/'} is a {type(node).__name__}: store tensors and numbers")


def _unpack(node: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    if "t" in node:
        return tensors[node["t"]]
    if "d" in node:
        return {k: _unpack(v, tensors) for k, v in node["d"]}
    if "l" in node:
        return [_unpack(v, tensors) for v in node["l"]]
    return node["v"]


def random_state() -> dict[str, Tensor]:
    """Return the states of torch's own generators, which dropout and the like draw from."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Restore what `random_state` returned, as far as the same devices are there."""
    torch.set_rng_state(state["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda:{i}" in state:
            torch.cuda.set_rng_state(state[f"cuda:{i}"], i)
