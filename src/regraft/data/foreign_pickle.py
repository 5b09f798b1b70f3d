"""Numbers out of a pickle that a stranger wrote, without making anything that the stranger names.

A pickle is a program: it names classes and calls them. Here every name stands for an inert record
of what it was called with, so nothing of NumPy, SciPy or any other package is imported, made or
called on the file's behalf. The arrays are made afterwards, from records whose types and sizes have
been checked.

A small pickle can also ask for much time or memory. Its operations are read before any is carried
out, and only those that make numbers, text, lists, dicts and calls are allowed, so many of them, with
so large integers, and so many keys of dicts, as the published graphs need with room to spare. What is
then carried out takes memory in proportion to the file, and seconds at most.
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

# PubMed, the largest of the published graphs, has 19,717 nodes and 88,648 edges.
MOST_BYTES = 1 << 26
_MOST_STEPS = 1 << 20
_MOST_KEYS = 1 << 15
# Hashing follows tuples to any depth; lists and dicts have no hash.
_MOST_TUPLES = 1000
# Integers up to here differ in their hashes; from 2 ** 61 on they can be chosen to have the same.
_MOST_INTEGER = 1 << 40

_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_NUMBERING = {"PUT", "BINPUT", "LONG_BINPUT"}
_STEPS = {
    *("PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD"),
    *("GET", "BINGET", "LONG_BINGET", "MEMOIZE", *_NUMBERING),
    *("NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2"),
    *("LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
    *("EMPTY_TUPLE", *_TUPLES, "EMPTY_LIST", "LIST", "APPEND", "APPENDS"),
    *("EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
}


def unpickled(content: bytes) -> Any:
    """Return what a pickle holds: numbers, text, lists, dicts, and records of arrays and matrices.

    Args:
        content: The whole file.

    Raises:
        ValueError: The pickle names something else than arrays, sparse matrices, lists and dicts,
            or asks for more time or memory than those need.
        Exception: Nearly any other, where the pickle is damaged.
    """
    _refuse_excess(content)
    return _Reader(content).load()


def _refuse_excess(content: bytes) -> None:
    """Refuse a pickle whose operations are too many, or too costly, before any is carried out."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has {len(content)} bytes, more than {MOST_BYTES}")
    tuples = keys = height = 0
    marks = [0]
    for count, (step, argument, _) in enumerate(pickletools.genops(content), 1):
        name = step.name
        if name not in _STEPS:
            raise ValueError(f"it has the operation {name}, which no array needs")
        if count > _MOST_STEPS:
            raise ValueError(f"it has more than {_MOST_STEPS} operations")
        if name in _NUMBERING and int(argument or 0) > count:
            raise ValueError("it numbers more objects than it has made")
        if isinstance(argument, int) and name != "FRAME" and abs(argument) > _MOST_INTEGER:
            raise ValueError("it has an integer of more than 40 bits")
        tuples += name in _TUPLES
        # The items on the stack from the last mark on are what a step that takes them all takes.
        items = height - marks[-1]
        keys += {"SETITEM": 1, "SETITEMS": items // 2, "DICT": items // 2}.get(name, 0)
        if name == "MARK":
            marks.append(height)
        elif pickletools.stackslice in step.stack_before:
            height = marks.pop() if len(marks) > 1 else 0
            height += len(step.stack_after) - (len(step.stack_before) - 2)
        else:
            height += len(step.stack_after) - len(step.stack_before)
        if tuples > _MOST_TUPLES or keys > _MOST_KEYS:
            raise ValueError(f"it has more tuples than {_MOST_TUPLES} or keys than {_MOST_KEYS}")


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


class _List(_Record):
    """What the lists of a `defaultdict` are made by; it makes none here."""

    __slots__ = ()

    def __init__(self, *_: object) -> None:
        raise ValueError("it makes a list by a call, which no array needs")


class _Encode(_Record):
    """What Python 3 writes bytes for Python 2 by: text, and the name of its encoding.

    Text stands in the file once for every time that it becomes bytes, so that all of it together
    makes at most as many bytes as the file has.
    """

    __slots__ = ("left",)

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __call__(self, text: object = "", encoding: object = "latin1") -> bytes:
        if type(text) is not str or encoding != "latin1":
            raise ValueError("it asks for another encoding than latin1")
        self.left -= len(text)
        if self.left < 0:
            raise ValueError("it makes more bytes of text than it has")
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
    ("__builtin__", "list"): _List,
    ("builtins", "list"): _List,
}


class _Reader(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._encode = _Encode(len(content))

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name, or refuse."""
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if (module, name) not in _STANDS_FOR:
            raise ValueError(f"it asks for {module}.{name}, which is no data")
        return _STANDS_FOR[module, name]
