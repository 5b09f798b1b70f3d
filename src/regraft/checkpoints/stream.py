"""Safetensors written tensor by tensor, for results that are never whole in memory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.files import DIGEST, atomic_path, seal

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
    with writing(path, sketch, header) as file:
        for name, tensor in tensors:
            file.put(name, tensor)
    return file.size


class TensorFile:
    """A safetensors file under way; made by `writing`."""

    def __init__(
        self,
        path: str | Path,
        file: BinaryIO,
        sketch: Mapping[str, Tensor],
        header: Mapping[str, str],
    ) -> None:
        self._path, self._file, self._sketch = path, file, sketch
        self._starts: dict[str, int] = {}
        self._left = set(sketch)
        entries: dict[str, object] = {"__metadata__": {**header, DIGEST: "0" * 64}}
        end = 0
        # Wide ones first: every tensor then begins at a multiple of its element size.
        for name in sorted(sketch, key=lambda k: (-sketch[k].element_size(), k)):
            like = sketch[name]
            if like.dtype not in _DTYPES:
                raise InputError(f"{name} has dtype {like.dtype}, which safetensors cannot store")
            start, end = end, end + like.numel() * like.element_size()
            self._starts[name] = start
            entries[name] = {
                "dtype": _DTYPES[like.dtype],
                "shape": list(like.shape),
                "data_offsets": [start, end],
            }
        head = json.dumps(entries, separators=(",", ":")).encode()
        head += b" " * (-len(head) % 8)
        file.write(len(head).to_bytes(8, "little") + head)
        self._begin = 8 + len(head)
        self.size = self._begin + end

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor to its place.

        Raises:
            InputError: It is not in the sketch, is otherwise there, or came before.
        """
        like = self._sketch.get(name)
        if (
            name not in self._left
            or like is None
            or (tensor.shape, tensor.dtype) != (like.shape, like.dtype)
        ):
            raise InputError(f"{name} is not the tensor that was announced for {self._path}")
        self._left.remove(name)
        self._file.seek(self._begin + self._starts[name])
        data = tensor.detach().cpu().contiguous().flatten()
        self._file.write(data.view(torch.uint8).numpy().data)

    def close(self) -> None:
        """Refuse to be whole where a tensor is missing.

        Raises:
            InputError: One never came.
        """
        if self._left:
            raise InputError(f"{min(self._left)} of {self._path} never came")


@contextlib.contextmanager
def writing(
    path: str | Path, sketch: Mapping[str, Tensor], header: Mapping[str, str]
) -> Iterator[TensorFile]:
    """Open a safetensors file to put tensors into; it takes its place when it is whole.

    Args:
        path: The file.
        sketch: Shape and dtype of every tensor, by name.
        header: Metadata of the file.

    Raises:
        InputError: As `write_stream`.
        RegraftError: The disk is full or failing.
    """
    with atomic_path(path) as temporary, temporary.open("xb") as opened:
        file = TensorFile(path, opened, sketch, header)
        yield file
        file.close()
        opened.flush()
        seal(temporary)
