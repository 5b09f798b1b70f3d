"""Damaged and lying ticket files: each refused in one sentence, none accepted, none costly.

`REGRAFT_FUZZ=10000` runs that many corruptions instead of the share that every test run makes.
"""

import json
import os
import random
import struct
import tracemalloc
import zlib

import pytest
from networks import conv_net
from searches import resigned, search

from regraft.errors import InputError
from regraft.tickets import Freezing, fill, gather, load_ticket
from regraft.tickets.file.packed import pack, unpack

CASES = int(os.environ.get("REGRAFT_FUZZ", "600"))
MEMORY = 4 << 20


@pytest.fixture(scope="module")
def files():
    kinds = [
        ("signed_kaiming_constant", False, None),
        ("signed_kaiming_constant", True, Freezing(0.2, 0.2)),
        ("kaiming_uniform", True, None),
    ]
    about = {"model": {"name": "conv_net"}, "classes": list("abcde")}
    return [pack(gather(search(k, r, freezing=f), about)) for k, r, f in kinds]


def flipped(chance, data, other):
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def overwritten(chance, data, other):
    at, n = chance.randrange(len(data)), chance.randint(1, 64)
    return data[:at] + chance.randbytes(n) + data[at + n :]


def truncated(chance, data, other):
    return data[: chance.randrange(len(data))]


def extended(chance, data, other):
    return data + chance.randbytes(chance.randint(1, 100))


def cut(chance, data, other):
    at, n = chance.randrange(len(data)), chance.randint(1, 64)
    return data[:at] + data[at + n :]


def inserted(chance, data, other):
    at = chance.randrange(len(data))
    return data[:at] + chance.randbytes(chance.randint(1, 64)) + data[at:]


def swapped(chance, data, other):
    a, b = sorted(chance.sample(range(len(data)), 2))
    n = min(chance.randint(1, 64), b - a, len(data) - b)
    return data[:a] + data[b : b + n] + data[a + n : b] + data[a : a + n] + data[b + n :]


def mixed(chance, data, other):
    at = chance.randrange(1, min(len(data), len(other)))
    return data[:at] + other[at:]


def lying_length(chance, data, other):
    at = chance.choice((8, 10, 14))
    lie = chance.choice((0, 1, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, chance.getrandbits(32)))
    size = 2 if at == 8 else 4
    return data[:at] + (lie & (256**size - 1)).to_bytes(size, "little") + data[at + size :]


DAMAGES = [
    flipped,
    overwritten,
    truncated,
    extended,
    cut,
    inserted,
    swapped,
    mixed,
    lying_length,
]


def peak(action):
    """Return the most memory that Python and NumPy held at once during `action`."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def refused(data):
    with pytest.raises(InputError) as caught:
        unpack(data, "x.ticket")
    said = str(caught.value)
    assert "x.ticket" in said
    assert "\n" not in said
    assert len(said) < 400


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_every_damage_is_refused_at_no_cost(damage, files):
    chance = random.Random(damage.__name__)
    for _ in range(-(-CASES // len(DAMAGES))):
        data, other = chance.sample(files, 2)
        broken = damage(chance, data, other)
        while broken in files:
            broken = damage(chance, data, other)
        assert peak(lambda b=broken: refused(b)) < MEMORY


def harmless(data, files):
    """Open a file whose digest fits, and return whether it was refused.

    What is not refused must hold other facts than the original only where no proof is possible, and
    must fit its model or be refused by it: never another error, never much memory.
    """
    try:
        ticket = unpack(data, "x.ticket")
        fill(conv_net(), ticket)
    except InputError:
        return True
    return False


NUMBERS = (0, -1, 1, 2, 7, 255, 2**16, 2**31, 2**32, 2**40, 2**63, 10**30, 0.5, 1e300)
VALUES = (*NUMBERS, None, True, "", "weight", [], {}, [1], [2**31, 2**31], {"bytes": 2**40})


def places(node, path=()):
    """Yield the path of every value in a JSON tree."""
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield (*path, key)
            yield from places(node[key], (*path, key))


def lie(chance):
    """Return a change of one or two values of a header, anywhere in it."""

    def change(header):
        for _ in range(chance.choice((1, 1, 2))):
            path = chance.choice([p for p in places(header) if p[0] != "about"])
            *above, key = path
            node = header
            for step in above:
                node = node[step]
            action = chance.random()
            if action < 0.2:
                del node[key]
            elif action < 0.4 and isinstance(node[key], int):
                node[key] += chance.choice((-1, 1, 8, 1000))
            else:
                node[key] = chance.choice(VALUES)

    return change


def test_lies_with_a_digest_that_fits_are_refused_or_harmless(files):
    chance = random.Random(1)
    answers = []
    for _ in range(CASES // 4):
        broken = resigned(chance.choice(files), lie(chance))
        taken = peak(lambda b=broken: answers.append(harmless(b, files)))
        assert taken < 64 << 20
    assert sum(answers) > 0.6 * len(answers)


def test_damage_with_a_digest_that_fits_never_ends_in_another_error(files):
    chance = random.Random(2)
    for _ in range(CASES // 4):
        data, other = chance.sample(files, 2)
        broken = resigned(chance.choice(DAMAGES)(chance, data[:-16], other[:-16]) + bytes(16))
        assert peak(lambda b=broken: harmless(b, files)) < 64 << 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h["masks"]["7.weight"].update(shape=[2**16, 2**16 - 1], kept=3), "more masks"),
        (lambda h: h["masks"]["7.weight"].update(shape=[2**20, 2**20], kept=0), "cannot be"),
        (lambda h: h["masks"]["7.weight"].update(kept=-1), "'kept' is -1"),
        (lambda h: h["masks"]["7.weight"].update(kept=10**9), "'kept' is 1000000000"),
        (lambda h: h["masks"]["7.weight"].update(kept=700), "number of ones"),
        (lambda h: h["masks"]["7.weight"].update(law="normal"), "expected one of"),
        (lambda h: h["masks"]["7.weight"].update(gain=float("inf")), "Infinity"),
        (lambda h: h["masks"]["7.weight"].update(gain=1e300), "gain that cannot be"),
        (lambda h: h["masks"]["7.weight"].update(tied=["1.weight"]), "'1.weight' twice"),
        (lambda h: h["parts"]["state"].update(plain=2**31), "longer than its bytes can hold"),
        (lambda h: h["parts"]["state"].update(plain=10), "another length"),
        (lambda h: h["parts"]["state"].update(bytes=10), "end at byte"),
        (lambda h: h["parts"]["masks"].update(bytes=2**31), "end at byte"),
        (lambda h: h["parts"]["masks"].update(check="00000000"), "other values than were stored"),
        (lambda h: h["parts"]["state"].update(check="00000000"), "another checksum"),
        (lambda h: h.update(masks={}), "no masks"),
        (lambda h: h["masks"]["7.weight"].update(stream_name="\ud800"), "no Unicode text"),
        (lambda h: h.update(schema=3), "has schema 3"),
        (lambda h: h.update(aliases={"x": "nowhere"}), "lacks the tensor 'nowhere'"),
        (lambda h: h.clear(), "needs stream None"),
    ],
)
def test_a_lie_is_called_by_its_name(change, said, files):
    data = resigned(files[0], change)
    with pytest.raises(InputError, match=r"x\.ticket") as caught:
        unpack(data, "x.ticket")
    assert said in str(caught.value)
    assert peak(lambda: refused(data)) < MEMORY


def with_header(text, plain=None):
    short = zlib.compress(text, 9)
    body = struct.pack("<8sHII", b"\x89tkt\r\n\x1a\n", 2, len(short), plain or len(text)) + short
    return resigned(body + bytes(16))


@pytest.mark.parametrize(
    "data",
    [
        with_header(b"[" * 100_000),
        with_header(b"{}"),
        with_header(b"[]"),
        with_header(b"not json"),
        with_header(b"\xff\xfe"),
        with_header(b'{"stream": 1e999}'),
        with_header(b"9" * 5000),
        with_header(b"{}", plain=1),
        with_header(b"{}", plain=2**32 - 1),
        with_header(bytes(1 << 23)),
        with_header(json.dumps({"stream": 1, "coder": "rans-24", "masks": {"a": 1}}).encode()),
    ],
    ids=range(11),
)
def test_a_header_of_nonsense_is_refused(data):
    refused(data)
    assert peak(lambda: refused(data)) < 32 << 20


def test_a_file_is_refused_as_its_bytes_are(files, tmp_path):
    path = tmp_path / "x.ticket"
    chance = random.Random(3)
    for damage in DAMAGES:
        path.write_bytes(damage(chance, files[0], files[1]))
        with pytest.raises(InputError, match=r"x\.ticket"):
            load_ticket(path)


def test_what_is_not_damaged_is_read(files):
    for data in files:
        assert not harmless(data, files)
        assert unpack(resigned(data, lambda h: None)).masks().keys() == unpack(data).masks().keys()
