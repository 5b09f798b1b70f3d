"""Bytes of rounded weights after entropy coding: what a trained rival of few bits needs.

Each layer's integers are coded at their own frequencies by the coder of ticket files, so a layer of n
weights takes n H bits, H the entropy of its integers, and 4 bytes for each frequency.
"""

from __future__ import annotations

import numpy as np

from .file.coder import Decoder, Encoder, table_of_counts
from .quantise import Quantised


def coded_weights(quantised: Quantised) -> tuple[bytes, dict[str, np.ndarray]]:
    """Return the coded integers of all layers, and how often each integer occurs, by layer.

    Integers -L to L of a layer are the symbols 0 to 2 L; a layer with one symbol needs no code.
    """
    encoder = Encoder()
    counts = {name: _counts(quantised, name) for name in quantised.codes}
    for name, codes in quantised.codes.items():
        if np.count_nonzero(counts[name]) > 1:
            symbols = codes.reshape(-1).numpy().astype(np.int64) + _level(quantised)
            encoder.push(symbols, table_of_counts(counts[name]))
    return encoder.data(), counts


def decoded_weights(data: bytes, counts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the integers that `coded_weights` coded, int64 [n] by layer."""
    decoder = Decoder(data)
    layers: dict[str, np.ndarray] = {}
    for name in reversed(counts):
        own = counts[name]
        level = len(own) // 2
        if np.count_nonzero(own) > 1:
            symbols = decoder.pop(int(own.sum()), table_of_counts(own)).astype(np.int64)
        else:
            symbols = np.full(int(own.sum()), int(np.argmax(own)))
        layers[name] = symbols - level
    decoder.finish()
    return {name: layers[name] for name in counts}


def coded_bytes(quantised: Quantised) -> int:
    """Return the bytes of coded integers, frequencies, float16 scales and other floating tensors.

    A layer whose channels share one scale, as a ternary one does, stores it once. As in
    `Quantised.payload_bytes` no header of a file counts.
    """
    data, counts = coded_weights(quantised)
    frequencies = 4 * sum(map(len, counts.values()))
    scales = sum(
        2 * (1 if bool((s == s[0]).all()) else s.numel()) for s in quantised.scales.values()
    )
    others = [t for t in quantised.state.values() if t.is_floating_point()]
    return len(data) + frequencies + scales + sum(t.numel() * t.element_size() for t in others)


def _level(quantised: Quantised) -> int:
    return 2 ** (quantised.bits - 1) - 1


def _counts(quantised: Quantised, name: str) -> np.ndarray:
    level = _level(quantised)
    symbols = quantised.codes[name].reshape(-1).numpy().astype(np.int64) + level
    return np.bincount(symbols, minlength=2 * level + 1)
