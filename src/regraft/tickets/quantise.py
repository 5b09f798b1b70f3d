"""Trained weights at a few bits each: the control a ticket meets at equal bytes.

Symmetric round-to-nearest with one float16 scale for each output channel,

    q = clip(round(W / c), -L, L),  W' = c q,  L = 2^(bits - 1) - 1,

where c = factor * max|W| / L and the clipping factor is the one of a small grid that leaves the
least squared error in the channel (below five bits, clipping the few large weights pays).

References:
    Nagel et al., "A white paper on neural network quantization", 2021, sections 2.2 and 3.1.
"""

# Not torchao: it is made for fast linear layers, and keeps odd widths at a byte for each weight.

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from regraft.errors import InputError
from regraft.files import parse_json, read_tensors, reading, write_tensors
from regraft.models.copying import copy_module

from .edge_popup import choose

SCHEMA = 1
_FACTORS = tuple(float(f) for f in np.linspace(1.0, 0.1, 37))  # of the largest weight


@dataclass(frozen=True)
class Quantised:
    """A network whose maskable weights are integers of a few bits.

    Attributes:
        bits: Bits of each integer.
        codes: q by parameter name, int8, shaped like the weight.
        scales: c by parameter name, float16, one for each output channel.
        state: Everything else of the state dict, as it was.
        tied: Further names of a weight that several layers share, by its first name.
    """

    bits: int
    codes: dict[str, Tensor]
    scales: dict[str, Tensor]
    state: dict[str, Tensor]
    tied: dict[str, list[str]]

    @property
    def payload_bytes(self) -> int:
        """Bytes of the packed integers, the scales and the other tensors, without a file's header."""
        weights = sum(-(-codes.numel() * self.bits // 8) for codes in self.codes.values())
        others = [*self.scales.values(), *self.state.values()]
        return weights + sum(t.numel() * t.element_size() for t in others if t.is_floating_point())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state dict of the plain network, quantised weights as c q in float32."""
        state = dict(self.state)
        for name, codes in self.codes.items():
            scales = self.scales[name].float().reshape(-1, *[1] * (codes.dim() - 1))
            for owner in (name, *self.tied.get(name, ())):
                state[owner] = codes * scales
        return state

    def dequantise(self, model: nn.Module) -> nn.Module:
        """Return a copy of `model`, a network of the same architecture, with these weights.

        Raises:
            InputError: The architecture is another one.
        """
        filled = copy_module(model)
        try:
            filled.load_state_dict(self.state_dict())
        except RuntimeError as error:
            why = " ".join(str(error).split())[:300]
            raise InputError(f"model does not fit, give what was quantised ({why})") from error
        return filled


def quantise(model: nn.Module, bits: int, *, trainable: Sequence[str] = ()) -> Quantised:
    """Quantise the weights that tickets mask; every other tensor stays as it is.

    Args:
        model: A plain network, which is not changed.
        bits: Bits of a weight, 2 to 8.
        trainable: Patterns of parameter names to leave as they are, as in `edge_popup`.

    Raises:
        InputError: `bits` outside 2 to 8, no maskable weight, a weight that is not finite or too
            large for a float16 scale, or a model that is masked or otherwise parametrised.
    """
    if bits not in range(2, 9):
        raise InputError(f"bits={bits}: expected a whole number of bits for a weight, from 2 to 8")
    codes, scales, tied, first = {}, {}, {}, {}
    rest = model.state_dict()
    for _, _, name, parameter in choose(model, trainable=trainable):
        del rest[name]
        if id(parameter) in first:
            tied.setdefault(first[id(parameter)], []).append(name)
            continue
        first[id(parameter)] = name
        codes[name], scales[name] = _rounded(name, parameter.detach().cpu().float(), bits)
    if not codes:
        raise InputError("model has no maskable weight (Linear, Conv1d/2d/3d): nothing to quantise")
    state = {key: t.cpu().contiguous().clone() for key, t in rest.items()}
    return Quantised(int(bits), codes, scales, state, tied)


def save_quantised(path: Path | str, quantised: Quantised) -> int:
    """Write one safetensors file, `bits` bits for each weight, and return its bytes on disk.

    Raises:
        InputError: The path cannot be written.
    """
    tensors = {f"state/{key}": tensor for key, tensor in quantised.state.items()}
    for name, codes in quantised.codes.items():
        tensors[f"code/{name}"] = _pack(codes, quantised.bits)
        tensors[f"scale/{name}"] = quantised.scales[name]
    header = {
        "schema": SCHEMA,
        "bits": quantised.bits,
        "shapes": {name: list(codes.shape) for name, codes in quantised.codes.items()},
        "tied": quantised.tied,
    }
    write_tensors(path, tensors, {"regraft.quantised": json.dumps(header)})
    return Path(path).stat().st_size


def load_quantised(path: Path | str) -> Quantised:
    """Read what `save_quantised` wrote, bit for bit, and check that it is whole.

    Raises:
        InputError: No such file, another kind of file, a damaged one, or one of a newer schema.
    """
    with reading(path, "it is no readable file of quantised weights; write it anew"):
        metadata, tensors = read_tensors(path, ours=False)
        header = parse_json(metadata["regraft.quantised"])
        if header["schema"] > SCHEMA:
            raise ValueError(f"schema {header['schema']}, where this version reads {SCHEMA}")
        bits, shapes = header["bits"], header["shapes"]
        codes = {n: _unpack(tensors.pop(f"code/{n}"), bits, tuple(s)) for n, s in shapes.items()}
        scales = {n: tensors.pop(f"scale/{n}") for n in shapes}
        state = {key.removeprefix("state/"): t for key, t in tensors.items()}
        return Quantised(bits, codes, scales, state, header["tied"])


def _rounded(name: str, weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return q, int8 shaped like W, and c, float16 [channels]."""
    level = 2 ** (bits - 1) - 1
    flat = weight.reshape(weight.shape[0], -1)
    top = flat.abs().amax(dim=1, keepdim=True) / level
    if not bool((top <= torch.finfo(torch.float16).max).all()):
        raise InputError(
            f"weight {name!r} reaches {float(flat.abs().max()):g}: expected finite weights in the range "
            "of float16, so train again with a lower learning rate"
        )
    best = torch.full_like(top, math.inf)
    scale, codes = torch.zeros_like(top), torch.zeros_like(flat)
    for factor in _FACTORS:
        # The error counts what the stored scale does, so it is rounded to float16 first.
        trial = (factor * top).half().float()
        q = torch.where(trial > 0, flat / trial, 0.0).round_().clamp_(-level, level)
        error = (q * trial - flat).square_().sum(dim=1, keepdim=True)
        better = error < best
        best, scale = torch.where(better, error, best), torch.where(better, trial, scale)
        codes = torch.where(better, q, codes)
    return codes.to(torch.int8).reshape(weight.shape), scale.half().reshape(-1)


def _pack(codes: Tensor, bits: int) -> Tensor:
    unsigned = (codes.reshape(-1, 1).short().numpy() + 2 ** (bits - 1)).astype(np.uint8)
    planes = np.unpackbits(unsigned, axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(planes, bitorder="little"))


def _unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    n = math.prod(shape)
    planes = np.unpackbits(packed.numpy(), count=n * bits, bitorder="little").reshape(n, bits)
    unsigned = np.packbits(planes, axis=1, bitorder="little").astype(np.int16)
    return torch.from_numpy((unsigned - 2 ** (bits - 1)).astype(np.int8)).reshape(shape)
