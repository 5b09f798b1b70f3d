"""Numbers out of a pickle that a stranger wrote, without making anything that the stranger names.

A pickle is a program: it names classes and calls them. Here every name stands for an inert record
of what it was called with, so nothing of NumPy, SciPy or any other package is imported, made or
called on the file's behalf. The arrays are made afterwards, from records whose types and sizes have
been checked. Two ways are closed in which a small file stops the process inside Python's `pickle`:
numbering its objects far beyond their count, and tuples nested deeper than the stack.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

# Kind and bytes of an item, for truth values, integers and floating-point numbers.
_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")
_NUMBERING = ("PUT", "BINPUT", "LONG_BINPUT")
# Hashing follows these to any depth; lists and dicts have no hash.
_NESTING = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
_MOST_NESTING = 1000


def unpickled(content: bytes) -> Any:
    """Return what a pickle holds: numbers, text, lists, dicts, and records of arrays and matrices.

    Args:
        content: The whole file.

    Raises:
        ValueError: The pickle names something else than arrays, sparse matrices, lists and dicts,
            or is made to exhaust memory or stack.
        Exception: Nearly any other, where the pickle is damaged.
    """
    nested = 0
    for step, number, _ in pickletools.genops(content):
        if step.name in _NUMBERING and int(number or 0) > len(content):
            raise ValueError("it numbers more objects than it has bytes")
        nested += step.name in _NESTING
    if nested > _MOST_NESTING:
        raise ValueError(f"it has {nested} tuples, more than arrays need")
    return _Reader(io.BytesIO(content), encoding="latin1").load()


def array_of(record: object) -> np.ndarray:
    """Return the array of a record, a copy.

    Raises:
        ValueError: It is no record of an array of numbers, or holds more or fewer bytes than it says.
    """
    if type(record) is not _Array or type(record.state) is not tuple or len(record.state) != 5:
        raise ValueError("there is no array where one should be")
    _, shape, kind, by_columns, content = record.state
    if type(kind) is not _Kind or type(content) not in (bytes, str) or not _is_shape(shape):
        raise ValueError("an array is not described as arrays are")
    dtype = kind.dtype()
    content = content.encode("latin1") if isinstance(content, str) else content
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array of shape {shape} has {len(content)} bytes")
    flat = np.frombuffer(content, dtype).astype(dtype.newbyteorder("="))
    return flat.reshape(shape, order="F" if by_columns else "C")


def matrix_of(record: object, most: int) -> np.ndarray:
    """Return the sparse matrix of a record, or its array, as float32 [rows, columns].

    Args:
        record: What `unpickled` found.
        most: Most values it may have, zeros included.

    Raises:
        ValueError: It is neither, it points outside itself, it has values that are not finite, or
            more than `most`.
    """
    if type(record) is not _Csr:
        dense = array_of(record)
        if dense.ndim != 2 or dense.size > most:
            raise ValueError(f"a matrix has shape {dense.shape}")
        return _finite(dense)
    state = record.state
    shape: Any = state.get("_shape") if type(state) is dict else None
    if not _is_shape(shape) or len(shape) != 2 or math.prod(shape) > most:
        raise ValueError(f"a sparse matrix has shape {str(shape)[:50]}")
    indptr, indices, data = (array_of(state.get(k)) for k in ("indptr", "indices", "data"))
    if indptr.shape != (shape[0] + 1,) or indices.ndim != 1 or indices.shape != data.shape:
        raise ValueError(f"a sparse matrix of shape {shape} has arrays of other sizes")
    starts, columns = _within(indptr, len(indices)), _within(indices, shape[1] - 1)
    if starts[0] != 0 or starts[-1] != len(indices) or (np.diff(starts) < 0).any():
        raise ValueError("the rows of a sparse matrix do not follow each other")
    dense = np.zeros(shape, np.float32)
    rows = np.repeat(np.arange(shape[0]), np.diff(starts))
    np.add.at(dense, (rows, columns), _finite(data))
    return dense


def _is_shape(shape: object) -> bool:
    return type(shape) is tuple and all(type(size) is int and 0 <= size < 1 << 40 for size in shape)


def _within(values: np.ndarray, last: int) -> np.ndarray:
    if values.dtype.kind not in "iu":
        raise ValueError(f"the indices of a sparse matrix are of type {values.dtype}")
    if values.size and not 0 <= int(values.min()) <= int(values.max()) <= last:
        raise ValueError("a sparse matrix points outside itself")
    return values.astype(np.int64)


def _finite(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not np.isfinite(single).all():
        raise ValueError("there are values that are not finite")
    return single


class _Record:
    """What the file calls, and what state it sets; it does nothing with either."""

    __slots__ = ("called", "state")

    def __init__(self, *called: object) -> None:
        self.called = called
        self.state: Any = None

    # A record takes its state here, so that no file can set attributes of anything.
    def __setstate__(self, state: object) -> None:
        self.state = state


class _Array(_Record):
    __slots__ = ()


class _Csr(_Record):
    __slots__ = ()

    def __new__(cls, *_: object) -> _Csr:
        made = super().__new__(cls)
        made.state = None  # NEWOBJ calls no __init__
        return made


class _Kind(_Record):
    __slots__ = ()

    def dtype(self) -> np.dtype:
        """Return the dtype, one of plain numbers."""
        code = self.called[0] if self.called else None
        order = self.state[1] if type(self.state) is tuple and len(self.state) > 1 else "|"
        if code not in _NUMBERS or order not in ("<", ">", "|"):
            raise ValueError(f"an array is of type {str(code)[:20]!r}, which is no number")
        return np.dtype(f"{order}{code}")


class _Bytes(_Record):
    """How Python 3 writes bytes for Python 2: text and the name of its encoding."""

    __slots__ = ()

    def __new__(cls, text: object = "", encoding: object = "latin1") -> Any:
        if type(text) is not str or encoding != "latin1":
            raise ValueError("it asks for another encoding than latin1")
        return text.encode("latin1")


class _Lists(dict):
    """A `defaultdict` that makes nothing by default."""

    __slots__ = ()

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        raise ValueError("a dict has a state")


_STANDS_FOR: dict[tuple[str, str], type] = {
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): _Record,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("scipy.sparse.csr", "csr_matrix"): _Csr,
    ("scipy.sparse._csr", "csr_matrix"): _Csr,
    ("collections", "defaultdict"): _Lists,
    ("__builtin__", "list"): list,
    ("builtins", "list"): list,
    ("_codecs", "encode"): _Bytes,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name, or refuse."""
        if (module, name) not in _STANDS_FOR:
            raise ValueError(f"it asks for {module}.{name}, which is no data")
        return _STANDS_FOR[module, name]
