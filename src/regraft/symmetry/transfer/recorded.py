"""The folder of a recorded trajectory: its index, its files, and what is whole of a cut one.

```
FOLDER/index.json                 schema, names, dtype of the displacements, a line for every step
FOLDER/initial.safetensors        the initial state, as it was
FOLDER/step-00000100.safetensors  θᵗ - θ⁰ of the trained tensors, the others as they were
```

A file is written whole and only then named in the index with its bytes and checksum, so that the
index never speaks of what is not there.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from regraft.checkpoints.read import Checkpoint, read_checkpoint
from regraft.checkpoints.state import check_state
from regraft.digests import file_digest
from regraft.errors import InputError
from regraft.files import load_json, write_json

Cut = Literal["warn", "refuse", "use"]

SCHEMA = 1
INDEX = "index.json"
INITIAL = "initial.safetensors"
_BLAKE2B = partial(hashlib.blake2b, digest_size=16)


def entry(file: Path, **more: Any) -> dict[str, Any]:
    """Return what the index says of a file."""
    return {
        "file": file.name,
        "bytes": file.stat().st_size,
        "blake2b": file_digest(file, kind=_BLAKE2B),
        **more,
    }


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return the index of a folder, or None where there is none.

    Raises:
        InputError: It is damaged, of something else, or of a newer schema.
    """
    file = folder / INDEX
    if not file.exists():
        return None
    try:
        index = load_json(file, ours=True)
        if not isinstance(index, dict) or index.get("kind") != "trajectory":
            raise ValueError("it is not of a trajectory")
        schema = int(index["schema"])
        for one in (index["initial"], *index["steps"]):
            if Path(str(one["file"])).name != one["file"]:
                raise ValueError(f"it names {one['file']}, a file outside the folder")
            if not isinstance(one["bytes"], int) or not isinstance(one["blake2b"], str):
                raise ValueError("a file is without size or checksum")
        steps = [int(one["step"]) for one in index["steps"]]
        if steps != sorted(set(steps)) or (steps and steps[0] <= 0):
            raise ValueError("its steps are not in order")
        list(index["trained"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"{file} is damaged ({error}): give another folder, or record the run again"
        ) from error
    if schema > SCHEMA:
        raise InputError(
            f"{file} has schema {schema}, this version reads up to {SCHEMA}: update regraft"
        )
    return index


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Replace the index."""
    write_json(folder / INDEX, index)


def problem(folder: Path, entry: dict[str, Any], *, verify: bool) -> str | None:
    """Return what is wrong with a file of the index, or None."""
    file = folder / entry["file"]
    if not file.is_file():
        return f"{file.name} is missing"
    size = file.stat().st_size
    if size != entry["bytes"]:
        return f"{file.name} has {size} bytes instead of {entry['bytes']}"
    if verify and file_digest(file, kind=_BLAKE2B) != entry["blake2b"]:
        return f"the checksum of {file.name} is wrong"
    return None


def open_recorded(folder: Path, *, cut: Cut, verify: bool) -> Recording:
    """Open a recorded trajectory; see `Trajectory.open`."""
    if cut not in ("warn", "refuse", "use"):
        raise InputError(f"cut={cut!r}: expected 'warn', 'refuse' or 'use'")
    index = read_index(folder)
    if index is None:
        raise InputError(
            f"{folder} is no recorded trajectory (it has no {INDEX}): give the folder of a "
            "TrajectoryRecorder, or two checkpoints to Trajectory.linear"
        )
    wrong = problem(folder, index["initial"], verify=verify)
    if wrong:
        raise InputError(
            f"{folder}: {wrong}: without the initial state nothing of the trajectory can be used; copy "
            "it again"
        )
    whole, reason = [], None if index.get("finished") else "it was not finished"
    for one in index["steps"]:
        wrong = problem(folder, one, verify=verify)
        if wrong:
            reason = wrong
            break
        whole.append(one)
    if reason is not None:
        until = f"step {whole[-1]['step']} ({len(whole)} states)" if whole else "nothing"
        said = f"{folder} was cut short: {reason}; whole up to {until}"
        if not whole:
            raise InputError(f"{said}: there is no step to transfer; record the run again")
        if cut == "refuse":
            raise InputError(f"{said}: go on with the run, or open it with cut='use'")
        if cut == "warn":
            warnings.warn(f"{said}, which is used", stacklevel=3)
    elif not whole:
        raise InputError(f"{folder} has only its initial state: record at least one step")
    return Recording(folder, index, whole)


class Recording:
    """The states of a recorded trajectory that are whole, read when they are asked for."""

    def __init__(self, folder: Path, index: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        self.folder, self.entries = folder, entries
        self.steps = (0, *(int(one["step"]) for one in entries))
        self.initial = read_checkpoint(folder / INITIAL)
        self.trained = frozenset(map(str, index["trained"]))
        unknown = self.trained - set(self.initial)
        if unknown:
            raise InputError(
                f"{folder / INDEX} is damaged (the initial state has no {min(unknown)}): record the "
                "run again"
            )
        self.origin = f"{len(entries)} recorded states of {folder}"
        self._shapes = {k: tuple(v.shape) for k, v in self.initial.sketch.items()}

    @property
    def error(self) -> float:
        """Largest relative error that storing the displacements has cost."""
        return max(float(one.get("error", 0.0)) for one in self.entries)

    def displacement(self, i: int) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, θᵗ - θ⁰) of the trained tensors at `steps[i]`."""
        file = self._file(i)
        if file is None:
            for name in self.trained:
                yield name, self.initial[name] * 0
            return
        for name in self.initial:
            if name in self.trained:
                yield name, file[name].to(_difference_dtype(self.initial[name]))

    def others(self, i: int) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) of what is not trained at `steps[i]`."""
        file = self._file(i) or self.initial
        for name in self.initial:
            if name not in self.trained:
                yield name, file[name]

    def _file(self, i: int) -> Checkpoint | None:
        i %= len(self.steps)
        if i == 0:
            return None
        path = self.folder / self.entries[i - 1]["file"]
        checkpoint = read_checkpoint(path)
        check_state(checkpoint.sketch, self._shapes, str(path))
        return checkpoint


def _difference_dtype(tensor: Tensor) -> Any:
    import torch

    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
