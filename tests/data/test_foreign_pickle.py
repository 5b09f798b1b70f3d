import contextlib
import io
import os
import pickle
import tracemalloc
from collections import defaultdict

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from regraft.data import foreign_pickle
from regraft.data.foreign_pickle import array_of, matrix_of, unpickled

KINDS = ("f4", "f8", "i4", "i8", "u1", "b1", ">i4", ">f8")


@given(
    kind=st.sampled_from(KINDS),
    shape=st.lists(st.integers(0, 4), max_size=3),
    order=st.sampled_from("CF"),
    protocol=st.sampled_from([2, 3, 4]),
)
def test_an_array_comes_back(kind, shape, order, protocol):
    values = np.arange(int(np.prod(shape))).astype(kind).reshape(shape, order=order)
    if protocol == 2 and not values.size:
        # Written as an empty `bytes`, which no published file holds.
        values = np.ones((1, 2), kind)
    found = array_of(unpickled(pickle.dumps(values, protocol=protocol)))
    assert found.dtype == values.dtype.newbyteorder("=")
    assert np.array_equal(found, values)


@given(seed=st.integers(0, 99), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_a_sparse_matrix_comes_back(seed, rows, columns):
    chance = np.random.default_rng(seed)
    dense = chance.random((rows, columns)) * (chance.random((rows, columns)) < 0.5)
    dense[0, 0] = 1
    for values in (sp.csr_matrix(dense), dense):
        found = matrix_of(unpickled(pickle.dumps(values, protocol=2)), rows * columns)
        assert np.array_equal(found, dense.astype(np.float32))


def test_lists_and_dicts_come_back():
    near = defaultdict(list, {0: [1, 2], 7: []})
    assert unpickled(pickle.dumps(near, protocol=2)) == {0: [1, 2], 7: []}


@pytest.mark.parametrize(
    "content",
    [
        os.getcwd,
        np.float64(1),
        pickle.Unpickler,
        io.BytesIO,
        bytearray(b"1"),
        np.random.default_rng,
        sp.csc_matrix((2, 2)),
    ],
)
def test_other_names_are_refused(content):
    with pytest.raises(ValueError, match=r"it asks for .*, which is no data"):
        unpickled(pickle.dumps(content, protocol=2))


def call(module, name, *arguments, state=None):
    """Return a pickle that calls a name and sets a state."""
    body = b"".join(pickle.dumps(a, protocol=2)[2:-1] for a in arguments)
    built = b"" if state is None else pickle.dumps(state, protocol=2)[2:-1] + b"b"
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + body + b"tR" + built + b"."


def test_another_encoding_is_refused():
    assert unpickled(call("_codecs", "encode", "\xff", "latin1")) == b"\xff"
    with pytest.raises(ValueError, match="another encoding than latin1"):
        unpickled(call("_codecs", "encode", "x", "rot13"))


@pytest.mark.parametrize(
    "names",
    [
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("scipy.sparse.csr", "csr_matrix"),
    ],
)
def test_a_state_changes_nothing_but_the_record(names):
    record = unpickled(call(*names, "f4", state=(None, {"__class__": 1, "state": 2})))
    assert record.state == (None, {"__class__": 1, "state": 2})
    assert type(record).__module__ == "regraft.data.foreign_pickle"
    # The class itself as the target of a state.
    target = b"\x80\x02c" + "\n".join(names).encode() + b"\n}X\x01\x00\x00\x00aK\x01sb."
    with pytest.raises(TypeError):
        unpickled(target)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (None, "there is no array"),
        ((1, (2,), "f4", False, "x" * 8), "not described as arrays are"),
        ((1, (1 << 40,), None, False, ""), "not described as arrays are"),
    ],
)
def test_an_array_with_another_state_is_refused(state, reason):
    record = unpickled(call("numpy.core.multiarray", "_reconstruct", state=state))
    with pytest.raises(ValueError, match=reason):
        array_of(record)


def test_an_array_has_as_many_bytes_as_it_says():
    whole = pickle.dumps(np.arange(4, dtype="u1"), protocol=4)
    torn = whole.replace(b"K\x04\x85", b"K\x05\x85")
    assert torn != whole
    with pytest.raises(ValueError, match=r"shape \(5,\) has 4 bytes"):
        array_of(unpickled(torn))


def test_a_dtype_with_flags_is_a_plain_one():
    # Flags that say "objects" make NumPy follow the numbers as addresses.
    whole = pickle.dumps(np.arange(2.0), protocol=2)
    flagged = whole.replace(
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t", b"J\xff\xff\xff\xff" * 2 + b"K?t"
    )
    assert flagged != whole
    found = array_of(unpickled(flagged))
    assert (found.dtype, found.tolist()) == (np.dtype(float), [0.0, 1.0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "numbers more objects than it has made"),
        (b"\x80\x02}N" + b"\x85" * 200_000 + b"Ns.", "more tuples than 1000"),
        (pickle.dumps({k * (2**61 - 1): 0 for k in range(1, 9)}, protocol=2), "more than 40 bits"),
        (pickle.dumps(dict.fromkeys(range(40_000)), protocol=2), "or keys than 32768"),
        (b"\x80\x02}(" + b"K\x01N" * 40_000 + b"d.", "or keys than 32768"),
        (b"\x80\x02}" + b"K\x01Ns" * 40_000 + b".", "or keys than 32768"),
        (b"\x80\x02]" + b"Na" * (1 << 19) + b".", "more than 1048576 operations"),
        (b"\x80\x02" + b"N" * (1 << 26) + b".", "more than 67108864"),
        (pickle.dumps({1.5: 0}, protocol=2), "the operation BINFLOAT"),
        (b"\x80\x02]22.", "the operation DUP"),
        (pickle.dumps(frozenset([1]), protocol=4), "the operation FROZENSET"),
    ],
    ids=range(11),
)
def test_what_would_stop_the_process_is_refused_before_anything_is_made(
    content, reason, monkeypatch
):
    monkeypatch.setattr(foreign_pickle, "_Reader", None)
    with pytest.raises(ValueError, match=reason):
        unpickled(content)


def repeated(module, name, argument, times):
    """Return a pickle that calls a name again and again with one long argument, kept by number."""
    kept = pickle.dumps(argument, protocol=3)[2:-1] + b"r\x02\x00\x00\x000"
    kept = kept[:-1]  # the argument stays below the list of results
    called = b"c" + f"{module}\n{name}\n".encode() + b"j\x02\x00\x00\x00\x85Ra"
    return b"\x80\x03" + kept + b"]" + called * times + b"."


@pytest.mark.parametrize(
    ("module", "name", "argument", "reason"),
    [
        ("builtins", "list", bytes(10_000), "makes a list by a call"),
        ("__builtin__", "list", bytes(10_000), "makes a list by a call"),
        ("_codecs", "encode", "x" * 100_000, "makes more bytes of text than it has"),
    ],
)
def test_a_call_again_and_again_makes_no_more_than_the_file_holds(module, name, argument, reason):
    content = repeated(module, name, argument, 900)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=reason):
            unpickled(content)
        # A thousandth of what the calls would make, and no bound on anybody's clock.
        assert tracemalloc.get_traced_memory()[1] < 8 * len(content)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("names", [("_codecs", "encode"), ("builtins", "list")])
@pytest.mark.parametrize("state", [{"left": 1 << 40}, (None, {"left": 1 << 40})])
def test_what_stands_for_a_call_keeps_its_attributes(names, state):
    body = pickle.dumps(state, protocol=2)[2:-1]
    content = b"\x80\x02]c" + "\n".join(names).encode() + b"\n" + body + b"b\x85."
    with contextlib.suppress(TypeError):
        record = unpickled(content)[0]
        assert record.left < 1 << 10
    assert not hasattr(foreign_pickle._List, "left")


def test_a_graph_as_large_as_the_largest_published_one_is_read():
    near = defaultdict(list, {i: [i, (i * 7) % 19_717, 3] for i in range(19_717)})
    assert unpickled(pickle.dumps(near, protocol=2)) == near


@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), rows=st.integers(1, 4))
def test_a_file_with_a_wrong_byte_ends_in_a_matrix_or_an_error(at, byte, rows):
    content = bytearray(pickle.dumps(sp.csr_matrix(np.eye(rows)), protocol=2))
    content[at % len(content)] = byte
    try:
        found = matrix_of(unpickled(bytes(content)), 100)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return
    assert found.dtype == np.float32
    assert found.size <= 100
