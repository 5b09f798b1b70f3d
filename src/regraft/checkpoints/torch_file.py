"""State dicts in files of `torch.save`, read without running what is in them."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.errors import InputError

_NESTED = ("state_dict", "model_state_dict", "model", "net", "module", "params")


def read_torch_file(path: Path, file: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a file by name, mapped where it can be, and notes on where they were.

    Args:
        path: What to call it in an error.
        file: The file.

    Raises:
        InputError: It is damaged, holds more than tensors, or none, or some that are not dense.
    """
    try:
        tree = _load(file)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors, which would run code when opened: save "
            "`model.state_dict()` alone, as safetensors or with torch.save"
        ) from error
    # torch.load raises nearly anything on a damaged file.
    except Exception as error:
        brief = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path} cannot be read ({brief}): it is damaged or cut short; copy it again"
        ) from error
    state, notes = tree, []
    while isinstance(state, Mapping) and not _is_state(state):
        key = next((k for k in _NESTED if isinstance(state.get(k), Mapping)), None)
        if key is None:
            break
        state = state[key]
        notes.append(f"{path}: the state dict was found under {key!r}")
    if not isinstance(state, Mapping) or not _is_state(state):
        keys = (
            f"it has {', '.join(map(str, list(state)[:5]))}" if isinstance(state, Mapping) else ""
        )
        raise InputError(
            f"{path} holds no state dict of tensors ({keys or type(state).__name__}): save "
            "`model.state_dict()`"
        )
    loaded = {k: v.detach() for k, v in state.items() if isinstance(v, Tensor)}
    packed = next((k for k, v in loaded.items() if v.layout != torch.strided or v.is_nested), None)
    if packed is not None:
        kind = str(loaded[packed].layout).removeprefix("torch.")
        raise InputError(
            f"{path}: {packed} is stored as a {kind} tensor: expected dense ones; save it with "
            "`.to_dense()`"
        )
    left = [k for k in state if k not in loaded]
    if left:
        notes.append(f"{path}: {', '.join(left[:3])} is no tensor and was left out")
    return loaded, tuple(notes)


def _load(file: Path) -> Any:
    with warnings.catch_warnings():
        # Of sparse tensors, which are refused here.
        warnings.filterwarnings("ignore", message="Validating sparse tensor invariants")
        return _read(file)


def _read(file: Path) -> Any:
    if zipfile.is_zipfile(file):
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # some old archives cannot be mapped
            return torch.load(file, map_location="cpu", weights_only=True)
    return torch.load(file, map_location="cpu", weights_only=True)


def _is_state(found: Mapping[Any, Any]) -> bool:
    """Whether a mapping is a state dict: text to tensors, but for a few extras of modules."""
    tensors = sum(isinstance(v, Tensor) for v in found.values())
    return bool(tensors) and all(isinstance(k, str) for k in found) and tensors * 2 > len(found)
