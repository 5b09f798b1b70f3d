"""Counter-based random streams: (seed, name, event) -> bits, the same everywhere and for ever.

torch's generators promise nothing across versions, devices or tensor sizes. Here every named tensor
has, for every event number, its own infinite stream of bits: the raw words of Philox4x64-10 (NumPy's
bit generator, whose raw stream NumPy guarantees), keyed by a BLAKE2b hash of seed, name and event.
NumPy counts before it draws, so the first block is that of counter one. Words become values by exact
integer steps and single IEEE-754 operations, so a value depends on nothing but (seed, name, event,
position): not on device, thread count, process, the order in which tensors are drawn, or the length
drawn (a shorter draw is a prefix of a longer).

`VERSION` is part of the key and of everything that is stored; golden hashes in the tests guard it.

References:
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox).
    Wichura, "Algorithm AS 241: the percentage points of the normal distribution", 1988.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ._shapes import Bool, Float, Int

VERSION = 1

_CHUNK = 1 << 20
# The eight signs of a byte, lowest bit first, as int8 packed into one int64.
_BYTE_TO_SIGNS = (
    (2 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") - 1)
    .astype(np.int8)
    .view(np.int64)
    .ravel()
)


def _generator(seed: int, name: str, event: int) -> np.random.Philox:
    text = f"regraft-stream/{VERSION}\0{int(seed)}\0{int(event)}\0{name}"
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(key, dtype="<u8").astype(np.uint64), counter=0)


def raw(seed: int, name: str, event: int, n: int) -> np.ndarray:
    """Return the first `n` 64-bit words of the stream, uint64 [n]."""
    if n < 0:
        raise ValueError(f"n={n}: a stream has no negative length; pass the number of values")
    return _generator(seed, name, event).random_raw(n)


def _bytes(seed: int, name: str, event: int, n: int) -> np.ndarray:
    return raw(seed, name, event, -(-n // 8)).astype("<u8", copy=False).view(np.uint8)[:n]


def words32(
    seed: int, name: str, event: int, n: int, *, index: np.ndarray | None = None
) -> np.ndarray:
    """Return the first `n` 32-bit words (low half of each 64-bit word first), or those at `index`."""
    words = raw(seed, name, event, -(-n // 2)).astype("<u8", copy=False).view("<u4")[:n]
    return words if index is None else words[index]


def signs(
    seed: int, name: str, event: int, n: int, *, index: np.ndarray | None = None
) -> Float[Tensor, " m"]:
    """Return +1 or -1 with equal chance, float32 [n]; bit i of the stream is position i.

    Args:
        seed: Seed of the whole network.
        name: Name of the tensor.
        event: Event number; 0 is the initial draw.
        n: Number of values.
        index: Positions (int64, each below `n`) to return instead of all of them.
    """
    packed = _bytes(seed, name, event, -(-n // 8))
    if index is not None:
        bits = (packed[index >> 3] >> (index & 7).astype(np.uint8)) & 1
        return torch.from_numpy(bits.astype(np.float32) * 2 - 1)
    return torch.from_numpy(_BYTE_TO_SIGNS[packed].view(np.int8)[:n].astype(np.float32))


def uniform(
    seed: int, name: str, event: int, n: int, *, index: np.ndarray | None = None
) -> Float[Tensor, " m"]:
    """Return values uniform on (-1, 1), float32 [n]: (2k + 1 - 2^24) / 2^24 for 24-bit k.

    The grid is symmetric about zero, never hits 0 or +-1, and every value is exact in float32.
    Arguments as in `signs`.
    """
    k = (words32(seed, name, event, n, index=index) >> np.uint32(8)).astype(np.int32)
    out = (2 * k + (1 - (1 << 24))).astype(np.float32)
    out *= np.float32(2.0**-24)
    return torch.from_numpy(out)


def normal(
    seed: int, name: str, event: int, n: int, *, index: np.ndarray | None = None
) -> Float[Tensor, " m"]:
    """Return standard normal values, float32 [n]: the inverse distribution at (w + 1/2) / 2^32.

    The quantile function is AS 241 in float64 with elementary operations only (the logarithm too is
    a fixed series), so no platform's mathematical library can change a bit. Tails reach +-6.3.
    Arguments as in `signs`.
    """
    words = words32(seed, name, event, n, index=index)
    out = np.empty(words.size, dtype=np.float32)
    for start in range(0, words.size, _CHUNK):
        w = words[start : start + _CHUNK].astype(np.float64)
        out[start : start + _CHUNK] = _quantile((w + 0.5) * 2.0**-32)
    return torch.from_numpy(out)


def bernoulli(seed: int, name: str, event: int, n: int, p: float) -> Bool[Tensor, " n"]:
    """Return bool [n], each True with probability `p` (rounded to a multiple of 2^-32).

    Raises:
        ValueError: `p` outside [0, 1].
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p={p}: a probability lies in [0, 1]")
    limit = np.uint64(round(p * 2**32))
    return torch.from_numpy(words32(seed, name, event, n).astype(np.uint64) < limit)


def integers(seed: int, name: str, event: int, n: int, high: int) -> Int[Tensor, " n"]:
    """Return int64 [n] in [0, high) by multiply-and-shift of 32-bit words.

    The bias is below `high` / 2^32.

    Raises:
        ValueError: `high` outside [1, 2^32].
    """
    if not 1 <= high <= 2**32:
        raise ValueError(f"high={high}: expected a bound in [1, 2^32]")
    product = words32(seed, name, event, n).astype(np.uint64) * np.uint64(high)
    return torch.from_numpy((product >> np.uint64(32)).astype(np.int64))


def permutation(seed: int, name: str, event: int, n: int) -> Int[Tensor, " n"]:
    """Return a permutation of 0..n-1, int64 [n]: the stable order of `n` 64-bit words."""
    order = np.argsort(raw(seed, name, event, n), kind="stable")
    return torch.from_numpy(order.astype(np.int64, copy=False))


class Counter:
    """Random numbers of one item after the other: item i has its own, however the items are batched.

    Whoever draws says for how many items (`advance`) and takes named numbers for them; `position` is
    the next item. Two counters of equal seed and name hand out the same numbers.

    Args:
        seed: The seed.
        name: What keeps two counters of one seed apart.
        position: The next item.
    """

    _BLOCK = 256

    def __init__(self, seed: int, name: str = "", position: int = 0) -> None:
        self.seed, self.name, self.position = int(seed), name, int(position)

    def __repr__(self) -> str:
        return f"Counter(seed={self.seed}, name={self.name!r}, position={self.position})"

    def advance(self, n: int) -> int:
        """Return the first of the next `n` items, and go on behind them."""
        first = self.position
        self.position += n
        return first

    def normal(self, what: str, first: int, n: int, size: int) -> Float[Tensor, "n size"]:
        """Return standard normal values of items `first` to `first + n`, float32 [n, size]."""
        return self._values(normal, what, first, n, size)

    def uniform(self, what: str, first: int, n: int, size: int) -> Float[Tensor, "n size"]:
        """Return values uniform on (0, 1) of items `first` to `first + n`, float32 [n, size]."""
        return (self._values(uniform, what, first, n, size) + 1) / 2

    def _values(
        self, draw: Callable[..., Tensor], what: str, first: int, n: int, size: int
    ) -> Tensor:
        parts = [torch.empty(0)]
        last, at = first + n, first
        while at < last:
            block, inside = divmod(at, self._BLOCK)
            count = min(last - at, self._BLOCK - inside)
            index = np.arange(inside * size, (inside + count) * size)
            name = f"counter/{self.name}/{what}/{size}"
            parts.append(draw(self.seed, name, block, (inside + count) * size, index=index))
            at += count
        return torch.cat(parts).view(n, size)

    def state_dict(self) -> dict[str, int]:
        """Return where the counter stands."""
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go back to where `state_dict` was taken."""
        self.position = int(state["position"])


def counter(generator: Counter | torch.Generator) -> Counter:
    """Return a counter as it is, or a fresh one whose seed is drawn from a torch generator.

    What a torch generator hands out depends on how often it was used, so only a `Counter` gives the
    same numbers at any batch size.
    """
    if isinstance(generator, Counter):
        return generator
    limit = 2**62
    device = generator.device
    return Counter(int(torch.randint(limit, (), generator=generator, device=device)))


def _log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm by elementary IEEE operations: log(m 2^e) = e log 2 + 2 artanh(s)."""
    m, e = np.frexp(x)
    low = m < 0.7071067811865476
    m = np.where(low, m * 2, m)
    e = e - low
    s = (m - 1) / (m + 1)
    z = s * s
    series = np.zeros_like(z)
    for odd in range(23, 0, -2):
        series = series * z + 1.0 / odd
    return e * 0.6931471805599453 + 2 * s * series


def _horner(x: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    total = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        total *= x
        total += c
    return total


# AS 241 (PPND16), highest power first.
_A = (
    2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
    13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608,
)  # fmt: skip
_B = (
    5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
    5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0,
)  # fmt: skip
_C = (
    7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177,
    1.27045825245236838258, 3.64784832476320460504, 5.7694972214606914055,
    4.6303378461565452959, 1.42343711074968357734,
)  # fmt: skip
_D = (
    1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966,
    0.14810397642748007459, 0.68976733498510000455, 1.6763848301838038494,
    2.05319162663775882187, 1.0,
)  # fmt: skip
_E = (
    2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386,
    0.026532189526576123093, 0.29656057182850489123, 1.7848265399172913358,
    5.4637849111641143699, 6.6579046435011037772,
)  # fmt: skip
_F = (
    2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5,
    7.868691311456132591e-4, 0.0148753612908506148525, 0.13692988092273580531,
    0.59983220655588793769, 1.0,
)  # fmt: skip


def _quantile(p: np.ndarray) -> np.ndarray:
    q = p - 0.5
    r = 0.180625 - q * q
    out = q * _horner(r, _A) / _horner(r, _B)
    tail = np.flatnonzero(np.abs(q) > 0.425)
    if tail.size:
        qt = q[tail]
        rt = np.sqrt(-_log(np.where(qt < 0, p[tail], 1 - p[tail])))
        near = rt <= 5
        rn, rf = rt - 1.6, rt - 5
        value = np.where(near, _horner(rn, _C) / _horner(rn, _D), _horner(rf, _E) / _horner(rf, _F))
        out[tail] = np.where(qt < 0, -value, value)
    return out


@contextlib.contextmanager
def seeded(seed: int, *devices: torch.device) -> Iterator[None]:
    """Seed torch's own generators in this context, for code that draws from them, and put them back.

    That of the CPU is, and those of the devices that are named; no other is touched, which
    `torch.manual_seed` would do.

    Args:
        seed: The seed.
        devices: Where the code computes; other kinds than CUDA are left out.
    """
    on_gpu = [device for device in dict.fromkeys(devices) if device.type == "cuda"]
    with torch.random.fork_rng(devices=on_gpu, device_type="cuda"):
        torch.default_generator.manual_seed(seed)
        for device in on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
