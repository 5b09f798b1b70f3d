"""Entropy coding of masks and event numbers: asymmetric numeral systems with exact integer tables.

A symbol s of frequency f(s), in units of 2^-24, is coded in -log2 f(s) + 24 bits. The tables are
integers computed from counts by integer arithmetic, so no floating-point unit has a say in what a
file decodes to; constriction does the coding, and `tests/tickets/test_coder.py` holds a decoder of
a dozen lines that agrees with it.

Bits are coded eight at a time: a byte with k ones has the frequency that k of eight bits have at
the density of the whole, which is as short as coding bit by bit and several times faster.

References:
    Duda et al., "The use of asymmetric numeral systems as an accurate replacement for Huffman
    coding", PCS 2015; Bamler, "Understanding entropy coding with asymmetric numeral systems", 2022.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PRECISION = 24
"""Frequencies are multiples of 2^-PRECISION."""
MAX_SYMBOLS = 1 << 16
"""Longest table of frequencies."""

_TOTAL = 1 << PRECISION
_CHUNK = 1 << 20
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)


def entropy_bits(counts: Iterable[int] | np.ndarray) -> float:
    """Return sum_s n_s log2(n / n_s) for n = sum_s n_s: the bits no code without context beats."""
    positive = [int(c) for c in counts if c > 0]
    total = sum(positive)
    return sum(c * math.log2(total / c) for c in positive)


def table_of_bits(n: int, ones: int) -> np.ndarray:
    """Return the frequencies of the 256 bytes for `n` bits of which `ones` are set, int64 [256].

    A byte with k ones has 1 + floor(ones^k (n - ones)^(8 - k) (2^24 - 256) / n^8); what is missing
    to 2^24 goes to byte 0, or to byte 255 where ones are in the majority.
    """
    zeros = n - ones
    share = [1 + ones**k * zeros ** (8 - k) * (_TOTAL - 256) // n**8 for k in range(9)]
    table = np.array(share, dtype=np.int64)[_ONES]
    table[255 if ones > zeros else 0] += _TOTAL - int(table.sum())
    return table


def table_of_counts(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the frequencies of symbols that occur `counts` times, each at least 1, int64 [K].

    Symbol s has 1 + floor(counts[s] (2^24 - K) / sum(counts)); what is missing to 2^24 goes to the
    most frequent symbol, the first of several.
    """
    total = sum(int(c) for c in counts)
    free = _TOTAL - len(counts)
    table = np.array([1 + int(c) * free // total for c in counts], dtype=np.int64)
    table[int(np.argmax(table))] += _TOTAL - int(table.sum())
    return table


@dataclass(frozen=True, eq=False)
class Bits:
    """A bool sequence at a bit a value, or at nothing where all values are equal.

    Attributes:
        n: Number of values.
        ones: How many are set.
        packed: As `pack_bits`, or None for all equal values: a count alone allocates nothing.
    """

    n: int
    ones: int
    packed: np.ndarray | None

    @classmethod
    def of(cls, values: np.ndarray) -> Bits:
        """Return the bits of a bool array [n]."""
        ones = int(np.count_nonzero(values))
        return cls(values.size, ones, pack_bits(values) if 0 < ones < values.size else None)

    def array(self) -> np.ndarray:
        """Return the values, bool [n]."""
        if self.packed is None:
            return np.full(self.n, self.ones > 0)
        return np.unpackbits(self.packed, count=self.n, bitorder="little").view(np.bool_)

    def entropy_bits(self) -> float:
        """Return n H(ones / n), the bits that no code without context beats."""
        return entropy_bits((self.ones, self.n - self.ones))


def pack_bits(values: np.ndarray) -> np.ndarray:
    """Return a bool array [n] as uint8 [ceil(n / 8)], position 0 in the lowest bit, zeros at the end."""
    return np.packbits(values, bitorder="little")


class Encoder:
    """Puts sequences on one stack of 32-bit words; what is pushed last is decoded first."""

    def __init__(self) -> None:
        self._coder = _ans()

    def push(self, symbols: np.ndarray, table: np.ndarray) -> None:
        """Push symbols, integers [m] below len(table); they come back in this order."""
        model = _model(table)
        for start in reversed(range(0, len(symbols), _CHUNK)):
            chunk = symbols[start : start + _CHUNK].astype(np.int32)
            self._coder.encode_reverse(chunk, model)

    def push_bits(self, bits: Bits) -> None:
        """Push bits; where all are equal there is no code, and nothing is pushed."""
        if bits.packed is not None:
            padded = bits.packed.copy()
            if bits.n % 8 and 2 * bits.ones > bits.n:
                padded[-1] |= (0xFF << (bits.n % 8)) & 0xFF  # the likelier value costs less
            self.push(padded, table_of_bits(bits.n, bits.ones))

    def data(self) -> bytes:
        """Return the words on the stack, little-endian."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Takes sequences from the stack that an `Encoder` left.

    Raises:
        ValueError: The data are no such stack.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise ValueError("its length is no multiple of 4")
        self._coder = _ans(np.frombuffer(data, dtype="<u4").astype(np.uint32))

    def pop(self, m: int, table: np.ndarray) -> np.ndarray:
        """Return the next `m` symbols, unsigned [m] in the fewest bytes that hold len(table) - 1."""
        out = np.empty(m, dtype=np.min_scalar_type(len(table) - 1))
        model = _model(table)
        for start in range(0, m, _CHUNK):
            stop = min(start + _CHUNK, m)
            out[start:stop] = self._coder.decode(model, stop - start)
        return out

    def pop_bits(self, n: int, ones: int) -> Bits:
        """Return the next `n` bits; see `Encoder.push_bits`.

        Raises:
            ValueError: They do not have `ones` ones.
        """
        if ones in (0, n):
            return Bits(n, ones, None)
        packed = self.pop(-(-n // 8), table_of_bits(n, ones))
        if n % 8:
            packed[-1] &= 0xFF >> (8 - n % 8)
        if int(np.bitwise_count(packed).sum(dtype=np.int64)) != ones:
            raise ValueError("it decodes to another number of ones")
        return Bits(n, ones, packed)

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            ValueError: Something is left.
        """
        if not self._coder.is_empty():
            raise ValueError("something is left over at its end")


def _ans(words: np.ndarray | None = None) -> Any:
    coder = _constriction().stream.stack.AnsCoder
    return coder() if words is None or not words.size else coder(words)


def _model(table: np.ndarray) -> Any:
    # constriction gives symbol s the frequency 1 + floor(p(s) / sum(p) * (2^24 - K)): with p = f - 1,
    # which sums to 2^24 - K, every step is exact in floating point and the result is f itself.
    return _constriction().stream.model.Categorical((table - 1).astype(np.float64), perfect=False)


def _constriction() -> Any:
    import constriction  # compiled, without types

    return constriction
