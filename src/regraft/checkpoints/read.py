"""Checkpoints of others, read without running what is in them, tensor by tensor.

Safetensors, single or in shards with an index, and files of `torch.save` by `weights_only`. Both
are mapped into memory: a tensor costs nothing before it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from regraft.errors import InputError
from regraft.files import check_digest, load_json, parse_json, reading

from .checkpoint import Checkpoint, opened_safetensors
from .names import unwrapped, with_counters
from .state import check_state
from .torch_file import read_torch_file, refuse_foreign

_INDEX = "model.safetensors.index.json"


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint.

    Args:
        path: A safetensors file, a file of `torch.save`, an index of shards, or a folder that holds
            `model.safetensors` or its index, such as a run's.

    Raises:
        InputError: No such file, a damaged one, one that holds more than tensors, or no tensors.
    """
    path = Path(path)
    file = _file_of(path)
    if file.name.endswith(".index.json"):
        checkpoint = _sharded(path, file)
    elif _is_torch_file(file):
        checkpoint = _torch_file(path, file)
    else:
        checkpoint = _safetensors(path, [file])
    if not checkpoint:
        raise InputError(f"{path} holds no tensors: expected the state dict of a model")
    kinds = {k: _dtype(t) for k, t in checkpoint.sketch.items()}
    strange = next((k for k, kind in kinds.items() if kind.startswith(("complex", "float4"))), None)
    if strange:
        raise InputError(
            f"{path}: {strange} has dtype {kinds[strange]}: expected real floating-point or integer "
            "tensors"
        )
    return checkpoint


def fit_names(checkpoint: Checkpoint, model: nn.Module) -> Checkpoint:
    """Return a checkpoint under the names of a model.

    Prefixes of wrappers come off where more names fit then (see `unwrapped`), BatchNorm's counters of
    batches may be missing, and a tied tensor that was stored under one of its names gets the others.

    Raises:
        InputError: A tensor is missing, unknown or of another shape or kind of dtype; the first is
            named.
    """
    expected = model.state_dict()
    fitted = unwrapped(checkpoint, expected)
    fitted = _with_tied(with_counters(fitted, expected), tied_names(model))
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    check_state(fitted.sketch, shapes, str(checkpoint.path))
    for name, tensor in expected.items():
        if tensor.is_floating_point() != fitted.sketch[name].is_floating_point():
            raise InputError(
                f"{checkpoint.path}: {name} is {_dtype(fitted.sketch[name])} and the model has "
                f"{_dtype(tensor)} there: expected a checkpoint that is not quantised"
            )
    return fitted.renamed({name: name for name in expected})


def tied_names(model: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def check_tied(checkpoint: Checkpoint, ties: Iterable[Sequence[str]]) -> None:
    """Refuse a checkpoint whose tied names hold different values: which are meant is not known.

    Args:
        checkpoint: The checkpoint.
        ties: Names of one tensor, several times.

    Raises:
        InputError: The first two names that differ.
    """
    for names in ties:
        stored: dict[tuple[Path | None, str], str] = {}
        for name in names:
            if name in checkpoint:
                stored.setdefault(checkpoint.where[name], name)
        first, *others = stored.values() or ("",)
        for other in others:
            if not _same_values(checkpoint[first], checkpoint[other]):
                raise InputError(
                    f"{checkpoint.path}: {first} and {other} are one tied tensor of the model and "
                    "hold different values: delete the one that is not meant from the checkpoint"
                )


def _same_values(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype != b.dtype or (a.is_floating_point() and a.element_size() == 1):
        a, b = a.double(), b.double()
    # What is no number is for `check_finite` to tell of.
    return bool(((a == b) | (torch.isnan(a) & torch.isnan(b))).all())


def check_alike(first: Checkpoint, other: Checkpoint) -> None:
    """Refuse two checkpoints that are not of one architecture.

    Raises:
        InputError: The first tensor that one lacks or that differs in shape or kind of dtype.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in first.sketch.items()}
    check_state(other.sketch, shapes, str(other.path))
    for name, tensor in first.sketch.items():
        if tensor.is_floating_point() != other.sketch[name].is_floating_point():
            raise InputError(
                f"{name} is {_dtype(tensor)} in {first.path} and {_dtype(other.sketch[name])} in "
                f"{other.path}: expected the same kind of numbers in both"
            )


def check_finite(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint with a value that is no finite number.

    Raises:
        InputError: The first tensor with one, and what it holds.
    """
    for name, tensor in checkpoint.items():
        if not tensor.is_floating_point():
            continue
        # Narrow formats lack most operations; every one of their values is a float32.
        values = tensor if tensor.element_size() > 1 else tensor.float()
        bad = ~torch.isfinite(values)
        if bool(bad.any()):
            kind = "NaN" if bool(torch.isnan(values).any()) else "infinite"
            raise InputError(
                f"{checkpoint.path}: {name} holds {kind} values ({int(bad.sum())} of "
                f"{tensor.numel()} are not finite): use a checkpoint from before training diverged"
            )


def _with_tied(checkpoint: Checkpoint, ties: list[list[str]]) -> Checkpoint:
    """Give a tied tensor that is stored once all its names."""
    names = {name: name for name in checkpoint}
    added = []
    for group in ties:
        there = [name for name in group if name in checkpoint]
        missing = [name for name in group if name not in checkpoint]
        if there and missing:
            names.update(dict.fromkeys(missing, there[0]))
            added += missing
    if not added:
        return checkpoint
    note = f"{checkpoint.path}: {', '.join(added)} is tied to a tensor under another name"
    return checkpoint.renamed(names, note)


def _file_of(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path}: no such file; give a .safetensors, .pt or .pth checkpoint")
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"{path} is a pipe or a device: name a file")
    for name in ("model.safetensors", _INDEX):
        if (path / name).is_file():
            return path / name
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    raise InputError(
        f"{path} is a folder without model.safetensors or {_INDEX}: name the checkpoint file in it"
    )


def _is_torch_file(file: Path) -> bool:
    """Whether a file begins like one of `torch.save`: a ZIP archive or a pickle."""
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror})") from error
    refuse_foreign(file, start)
    # safetensors begin with the length of a JSON object, which may look like the start of a pickle.
    if start[8:] == b"{" and not start.startswith(b"PK"):
        return False
    return start.startswith((b"PK\x03\x04", b"\x80\x02"))


def _safetensors(path: Path, files: list[Path]) -> Checkpoint:
    sketch: dict[str, Tensor] = {}
    where: dict[str, tuple[Path | None, str]] = {}
    metadata: dict[str, str] = {}
    for file in files:
        with opened_safetensors(file) as opened:
            entries = opened.metadata() or {}
            check_digest(file, entries, ours="tree" in entries and "schema" in entries)
            metadata |= entries
            for name in opened.keys():  # noqa: SIM118
                # The tensor is a view of the mapped file: nothing is read for its shape.
                tensor = opened.get_tensor(name)
                sketch[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                where[name] = (file, name)
    if "tree" in metadata and "schema" in metadata:
        sketch, where = _of_a_run(path, metadata["tree"], sketch, where)
    return Checkpoint(path, sketch, where, {}, metadata)


def _of_a_run(
    path: Path, tree: str, sketch: dict[str, Tensor], where: dict[str, tuple[Path | None, str]]
) -> tuple[dict[str, Tensor], dict[str, tuple[Path | None, str]]]:
    """Return the model part of one of our own training checkpoints."""
    with reading(
        path, "it is a state file of a run without a model in it; give its model.safetensors"
    ):
        entries = dict(parse_json(tree)["d"])["model"]["d"]
        names = {name: node["t"] for name, node in entries if "t" in node}
        return {k: sketch[v] for k, v in names.items()}, {k: where[v] for k, v in names.items()}


def _sharded(path: Path, index: Path) -> Checkpoint:
    with reading(index, "it is no index of shards, which is JSON with a weight_map"):
        names = load_json(index)["weight_map"]
        files = {name: index.parent / str(file) for name, file in names.items()}
        shards = sorted(set(files.values()))
        outside = next((s for s in shards if s.parent != index.parent), None)
        if outside is not None:
            raise InputError(f"{index} names {outside}, a file outside its own folder")
        missing = next((s for s in shards if not s.is_file()), None)
    if missing is not None:
        raise InputError(f"{index} names the shard {missing.name}, which is not there: copy it too")
    if any(s.suffix != ".safetensors" for s in shards):
        raise InputError(f"{index} is of shards that are not safetensors: convert them")
    checkpoint = _safetensors(path, shards)
    absent = next(
        (k for k, f in files.items() if checkpoint.where.get(k, (None, ""))[0] != f), None
    )
    if absent is not None:
        raise InputError(
            f"{index} puts {absent} into {files[absent].name}, which does not hold it: the shards "
            "are of another checkpoint"
        )
    return checkpoint


def _torch_file(path: Path, file: Path) -> Checkpoint:
    loaded, notes = read_torch_file(path, file)
    sketch = {k: torch.empty_like(v, device="meta") for k, v in loaded.items()}
    return Checkpoint(path, sketch, {k: (None, k) for k in loaded}, loaded, {}, notes)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
