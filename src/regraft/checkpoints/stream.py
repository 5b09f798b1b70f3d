"""Safetensors written tensor by tensor, for results that are never whole in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.files import atomic_path

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_stream(
    path: str | Path,
    sketch: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    header: Mapping[str, str],
) -> int:
    """Write a safetensors file from tensors that come one by one, and return its bytes.

    The file takes its place when it is whole, as `regraft.files.atomic_path` does it.

    Args:
        path: The file.
        sketch: Shape and dtype of every tensor, by name.
        tensors: Names and tensors, each of the sketch once, in any order.
        header: Metadata of the file.

    Raises:
        InputError: A tensor that is not in the sketch, is otherwise there, is missing, or has a
            dtype that safetensors has no name for.
        RegraftError: The disk is full or failing.
    """
    entries: dict[str, object] = {"__metadata__": dict(header)}
    starts: dict[str, int] = {}
    end = 0
    # Wide ones first: every tensor then begins at a multiple of its element size.
    for name in sorted(sketch, key=lambda k: (-sketch[k].element_size(), k)):
        like = sketch[name]
        if like.dtype not in _DTYPES:
            raise InputError(f"{name} has dtype {like.dtype}, which safetensors cannot store")
        starts[name], end = end, end + like.numel() * like.element_size()
        entries[name] = {
            "dtype": _DTYPES[like.dtype],
            "shape": list(like.shape),
            "data_offsets": [starts[name], end],
        }
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    left = set(sketch)
    with atomic_path(path) as temporary, temporary.open("xb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name, tensor in tensors:
            if name not in left or (tensor.shape, tensor.dtype) != (
                sketch[name].shape,
                sketch[name].dtype,
            ):
                raise InputError(f"{name} is not the tensor that was announced for {path}")
            left.remove(name)
            file.seek(8 + len(head) + starts[name])
            data = tensor.detach().cpu().contiguous().flatten()
            file.write(data.view(torch.uint8).numpy().data)
        if left:
            raise InputError(f"{min(left)} of {path} never came")
    return 8 + len(head) + end
