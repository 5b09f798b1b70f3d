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

# fmt: off
_NESTED = (
    "state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights",
    "generator", "student", "teacher",
)
# fmt: on
_AVERAGED = ("model_ema", "ema", "state_dict_ema", "ema_state_dict", "ema_model", "params_ema")
"""Keys of running averages of weights, which are taken where there is nothing else."""
_DEEPEST = 16
_MOST_CLAIMED = 1 << 26
"""Bytes that expanded tensors of a file may take beyond those it holds."""

_FOREIGN = (
    (b"GGUF", "a GGUF file of llama.cpp"),
    (b"\x89HDF\r\n", "an HDF5 file of Keras"),
    (b"\x08\x07\x12", "an ONNX file"),
    (b"\x93NUMPY", "a file of NumPy"),
)


def read_torch_file(path: Path, file: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a file by name, mapped where it can be, and notes on where they were.

    Args:
        path: What to call it in an error.
        file: The file.

    Raises:
        InputError: It is damaged, holds more than tensors, or none, or some that are not dense.
    """
    if _is_zip(file):
        _refuse_archive(path, file)
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
    # A mapping may hold itself.
    while isinstance(state, Mapping) and not _is_state(state) and len(notes) < _DEEPEST:
        keys = (k for k in (*_NESTED, *_AVERAGED) if isinstance(state.get(k), Mapping))
        key = next(keys, None)
        if key is None:
            break
        state = state[key]
        kind = "a running average of weights" if key in _AVERAGED else "the state dict"
        notes.append(f"{path}: {kind} was found under {key!r}")
    if not isinstance(state, Mapping) or not _is_state(state):
        keys = (
            f"it has {', '.join(map(str, list(state)[:5]))}" if isinstance(state, Mapping) else ""
        )
        raise InputError(
            f"{path} holds no state dict of tensors ({keys or type(state).__name__}): save "
            "`model.state_dict()`"
        )
    loaded = {k: v.detach() for k, v in state.items() if isinstance(v, Tensor)}
    _refuse_strange(path, loaded)
    left = [k for k in state if k not in loaded]
    if left:
        notes.append(f"{path}: {', '.join(left[:3])} is no tensor and was left out")
    return loaded, tuple(notes)


def _refuse_strange(path: Path, loaded: Mapping[str, Tensor]) -> None:
    """Refuse what is not dense, holds no values, or claims more of them than the file has."""
    claimed = 0
    for name, tensor in loaded.items():
        kind = str(tensor.layout).removeprefix("torch.")
        if tensor.layout != torch.strided or tensor.is_nested:
            raise InputError(
                f"{path}: {name} is stored as a {kind} tensor: expected dense ones; save it with "
                "`.to_dense()`"
            )
        if tensor.is_meta:
            raise InputError(f"{path}: {name} has no values (device meta): load weights, then save")
        if tensor.is_quantized:
            raise InputError(f"{path}: {name} is quantised: save it with `.dequantize()`")
        claimed += max(0, tensor.nbytes - tensor.untyped_storage().nbytes())
        if claimed > _MOST_CLAIMED:
            raise InputError(
                f"{path}: {name} repeats values that the file holds once, {claimed} bytes in all: save "
                "it with `.clone()`"
            )


def refuse_foreign(path: Path, start: bytes) -> None:
    """Refuse a file of another framework by what it begins with.

    Raises:
        InputError: It is one.
    """
    for mark, kind in _FOREIGN:
        if start.startswith(mark):
            raise InputError(
                f"{path} is {kind}: expected safetensors or a file of torch.save; convert it with the "
                "tool that wrote it"
            )


def _is_zip(file: Path) -> bool:
    try:
        return zipfile.is_zipfile(file)
    except (ValueError, NotImplementedError, zipfile.BadZipFile):
        return False  # torch says what is wrong


def _refuse_archive(path: Path, file: Path) -> None:
    """Refuse code, something else, and what was packed again: mapped, it would be taken for numbers."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            packed = [i.filename for i in archive.infolist() if i.compress_type]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return  # reading it says what is wrong
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise InputError(
            f"{path} is a TorchScript archive, which holds code beside its weights: save "
            "`torch.jit.load(file).state_dict()` with torch.save"
        )
    if names and not any(name.endswith("data.pkl") for name in names):
        raise InputError(
            f"{path} is a ZIP archive of something else ({names[0]}): expected one of torch.save, or "
            "safetensors; unpack it first"
        )
    if packed:
        raise InputError(
            f"{path} was compressed after torch.save wrote it ({packed[0]}): load it with torch.load, "
            "and save the state dict again"
        )


def _load(file: Path) -> Any:
    with warnings.catch_warnings():
        # Of sparse tensors, which are refused here.
        warnings.filterwarnings("ignore", message="Validating sparse tensor invariants")
        return _read(file)


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":  # of which torch has a reader of its own, by name
        with file.open("rb") as opened:
            return torch.load(opened, map_location="cpu", weights_only=True)
    if _is_zip(file):
        try:
            return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # some old archives cannot be mapped
            return torch.load(file, map_location="cpu", weights_only=True)
    return torch.load(file, map_location="cpu", weights_only=True)


def _is_state(state: Mapping[Any, Any]) -> bool:
    """Whether a mapping is a state dict: text to tensors, but for a few extras of modules."""
    tensors = sum(isinstance(v, Tensor) for v in state.values())
    return bool(tensors) and all(isinstance(k, str) for k in state) and tensors * 2 > len(state)
