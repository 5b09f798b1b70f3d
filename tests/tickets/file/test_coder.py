import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.tickets.file.coder import (
    Bits,
    Decoder,
    Encoder,
    entropy_bits,
    table_of_bits,
    table_of_counts,
)
from regraft.tickets.file.events import Tables, pop_draws, push_draws


def slow_pop(words, state, n, table):
    """Decode `n` symbols as the format says, one integer at a time."""
    ends = np.cumsum(table)
    out = []
    for _ in range(n):
        place = state % 2**24
        symbol = int(np.searchsorted(ends, place, side="right"))
        out.append(symbol)
        start = int(ends[symbol] - table[symbol])
        state = int(table[symbol]) * (state >> 24) + place - start
        if state < 2**32 and words:
            state = state << 32 | words.pop()
    return out, state


def opened(data):
    """Return the stack of words and the first state."""
    words = np.frombuffer(data, "<u4").tolist()
    state = 0
    for _ in range(2):
        state = state << 32 | words.pop() if words else state
    return words, state


def random_bits(n, ones, seed=0):
    values = np.zeros(n, dtype=bool)
    values[np.random.default_rng(seed).permutation(n)[:ones]] = True
    return values


sequences = st.integers(1, 400).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, 2**32))
)


@given(st.lists(sequences, min_size=1, max_size=6))
def test_bits_come_back_in_order_and_nothing_is_left(cases):
    bits = [Bits.of(random_bits(*case)) for case in cases]
    encoder = Encoder()
    for b in reversed(bits):
        encoder.push_bits(b)
    decoder = Decoder(encoder.data())
    for b in bits:
        assert np.array_equal(decoder.pop_bits(b.n, b.ones).array(), b.array())
    decoder.finish()


@given(st.lists(sequences, min_size=1, max_size=4))
def test_a_decoder_of_a_dozen_lines_agrees(cases):
    bits = [Bits.of(random_bits(*case)) for case in cases]
    encoder = Encoder()
    for b in reversed(bits):
        encoder.push_bits(b)
    words, state = opened(encoder.data())
    for b in bits:
        if b.packed is None:
            continue
        out, state = slow_pop(words, state, len(b.packed), table_of_bits(b.n, b.ones))
        found = np.unpackbits(np.array(out, np.uint8), count=b.n, bitorder="little")
        assert np.array_equal(found.astype(bool), b.array())
    assert (words, state) == ([], 0)


@given(st.integers(2, 2**32), st.data())
def test_the_table_of_bits_is_a_distribution_near_the_density(n, data):
    ones = data.draw(st.integers(1, n - 1))
    table = table_of_bits(n, ones)
    assert table.sum() == 2**24
    assert table.min() >= 1
    for byte in (0, 1, 0x0F, 0xAA, 0xFF):
        k = byte.bit_count()
        exact = (ones / n) ** k * (1 - ones / n) ** (8 - k) * 2**24
        assert abs(table[byte] - exact) <= 512
    assert len(set(table[[1, 2, 4, 8, 16, 32, 64, 128]])) == 1


@given(st.lists(st.integers(1, 2**33), min_size=2, max_size=300))
def test_the_table_of_counts_is_a_distribution(counts):
    table = table_of_counts(counts)
    assert table.sum() == 2**24
    assert table.min() >= 1
    rarest, commonest = int(np.argmin(counts)), int(np.argmax(counts))
    assert table[rarest] <= table[commonest]


@pytest.mark.parametrize("density", [0.5, 0.3, 0.05, 0.001, 0.97])
def test_a_million_bits_cost_a_hundredth_of_a_percent_more_than_their_entropy(density):
    n = 1_000_003
    bits = Bits.of(random_bits(n, round(n * density)))
    encoder = Encoder()
    encoder.push_bits(bits)
    bound = bits.entropy_bits() / 8
    assert bound == pytest.approx(
        -n * (density * math.log2(density) + (1 - density) * math.log2(1 - density)) / 8, rel=1e-4
    )
    assert bound <= len(encoder.data()) <= bound * 1.0001 + 16


def test_what_is_alike_costs_nothing_and_holds_nothing():
    bits = [Bits.of(np.full(1000, value)) for value in (True, False)]
    encoder = Encoder()
    for b in bits:
        encoder.push_bits(b)
    assert encoder.data() == b""
    decoder = Decoder(b"")
    huge = decoder.pop_bits(2**40, 0)
    assert huge.packed is None
    decoder.finish()
    assert [b.array().all() for b in bits] == [True, False]


def test_entropy_of_counts():
    assert entropy_bits([4, 4]) == 8
    assert entropy_bits([2, 1, 1]) == 6
    assert entropy_bits([7]) == entropy_bits([7, 0]) == entropy_bits([]) == 0


def test_data_that_are_no_stack_are_refused():
    for data in (b"123", bytes(4), b"abcd" + bytes(4)):
        with pytest.raises(ValueError, match=r"multiple of 4|zero word"):
            Decoder(data)


def test_a_wrong_count_or_a_rest_is_refused():
    encoder = Encoder()
    encoder.push_bits(Bits.of(random_bits(1000, 300)))
    with pytest.raises(ValueError, match="number of ones"):
        Decoder(encoder.data()).pop_bits(1000, 299)
    with pytest.raises(ValueError, match="left over"):
        Decoder(encoder.data()).finish()


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**31 - 41)),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 2**32),
)
def test_event_numbers_come_back(cases, seed):
    random = np.random.default_rng(seed)
    draws = [first + random.integers(0, kinds, n) for n, kinds, first in cases]
    encoder = Encoder()
    tables = push_draws(encoder, draws)
    decoder = Decoder(encoder.data())
    found = pop_draws(decoder, [len(d) for d in draws], tables)
    decoder.finish()
    assert all(np.array_equal(a, b) for a, b in zip(found, draws, strict=True))


def test_large_unlike_layers_get_tables_of_their_own_and_small_alike_ones_share():
    random = np.random.default_rng(0)
    early, late = random.binomial(60, 0.2, 50_000), random.binomial(60, 0.8, 50_000)
    tables = push_draws(encoder := Encoder(), [early, late])
    assert tables.of == (0, 1)
    bound = sum(entropy_bits(np.unique(d, return_counts=True)[1]) for d in (early, late)) / 8
    assert len(encoder.data()) + len(tables.data) < 1.01 * bound
    alike = [random.binomial(60, 0.5, 40) for _ in range(5)]
    assert push_draws(Encoder(), alike).of == (0, 0, 0, 0, 0)


def test_tables_that_lie_are_refused():
    draws = [np.array([0, 0, 3, 5])]
    tables = push_draws(encoder := Encoder(), draws)
    for sizes, wrong in (
        ([5], tables),
        ([4], Tables((2,), (0,), tables.data)),
        ([4], Tables((4,), (0,), tables.data)),
    ):
        with pytest.raises(ValueError, match="its tables of events"):
            pop_draws(Decoder(encoder.data()), sizes, wrong)
