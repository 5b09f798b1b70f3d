"""A found ticket as one safetensors file: masks, what training changed, and the seed of the rest.

Weights are not stored. The file holds one bit a weight for each mask; one sign bit (signed constant)
or one 16-bit event number (other laws) for each *kept* weight that IteRand may have redrawn; the few
tensors that no seed gives back (normalisation statistics, trained parts); and a JSON header with
seed, law, model and classes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regraft import streams
from regraft.errors import InputError
from regraft.files import write_tensors

from .mask import Mask, named_masks
from .source import WeightSource

SCHEMA = 1


@dataclass(frozen=True)
class Ticket:
    """A ticket read from a file.

    Attributes:
        header: Everything that is not a tensor: `model`, `classes`, `masks` and so on.
        tensors: `mask/NAME`, `sign/NAME`, `draw/NAME` and `state/KEY`.
        size: Bytes of the file.
    """

    header: dict[str, Any]
    tensors: dict[str, Tensor]
    size: int

    def masks(self) -> dict[str, Tensor]:
        """Return the masks by parameter name, bool."""
        out = {}
        for name, entry in self.header["masks"].items():
            shape = tuple(entry["source"]["shape"])
            bits = self.tensors[f"mask/{name}"].numpy()
            flat = np.unpackbits(bits, count=math.prod(shape), bitorder="little")
            out[name] = torch.from_numpy(flat.astype(bool)).reshape(shape)
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state dict of the plain network, masked weights as W * M in float32."""
        state = {
            k.removeprefix("state/"): t for k, t in self.tensors.items() if k.startswith("state/")
        }
        for name, mask in self.masks().items():
            source = WeightSource.from_json(self.header["masks"][name]["source"])
            state[name] = self._weight(name, source, mask)
            for alias in self.header["masks"][name].get("tied", ()):
                state[alias] = state[name]
        return state

    def _weight(self, name: str, source: WeightSource, mask: Tensor) -> Tensor:
        kept = torch.nonzero(mask.reshape(-1)).reshape(-1)
        weight = torch.zeros(source.numel)
        if f"sign/{name}" in self.tensors:
            bits = np.unpackbits(
                self.tensors[f"sign/{name}"].numpy(), count=kept.numel(), bitorder="little"
            )
            weight[kept] = source.draw()[:1].abs() * (torch.from_numpy(bits).float() * 2 - 1)
        elif f"draw/{name}" in self.tensors:
            draw = torch.zeros(source.numel, dtype=torch.int64)
            draw[kept] = self.tensors[f"draw/{name}"].long()
            weight = source.rebuild(draw).reshape(-1) * mask.reshape(-1)
        else:
            weight = source.draw() * mask.reshape(-1)
        return weight.reshape(source.shape)

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of masks, signs, draws, state and header (with padding)."""
        parts = {"masks": 0, "signs": 0, "draws": 0, "state": 0}
        for key, tensor in self.tensors.items():
            part = {"mask": "masks", "sign": "signs", "draw": "draws"}.get(
                key.split("/")[0], "state"
            )
            parts[part] += tensor.numel() * tensor.element_size()
        return {**parts, "header": self.size - sum(parts.values())}


def save_ticket(
    path: Path | str, model: nn.Module, *, about: Mapping[str, Any] | None = None
) -> int:
    """Write the current ticket of an edge-popup model and return the bytes of the file.

    Args:
        path: The file, by convention `ticket.safetensors`.
        model: A model masked by `edge_popup`.
        about: JSON values for the header: `model` (what builds it), `classes` and the like.

    Raises:
        InputError: The model has no edge-popup mask, or the path cannot be written.
    """
    entries = {n: (e, m) for n, e, m in named_masks(model) if isinstance(m, Mask)}
    if not entries:
        raise InputError("model has no edge-popup mask to store: call `edge_popup(model)` first")
    owners = _owners(model)
    tensors: dict[str, Tensor] = {}
    masks: dict[str, Any] = {}
    for name, (entry, mask) in entries.items():
        kept = mask.mask(entry.original).reshape(-1).cpu()
        tensors[f"mask/{name}"] = _pack_bits(kept.numpy())
        masks[name] = {"source": asdict(mask.source), "kept": int(kept.sum())}
        if aliases := [n for n in owners[id(entry)] if n != name]:
            masks[name]["tied"] = aliases
        if mask.draw is not None and bool(mask.draw.any()):
            if mask.source.init == "signed_kaiming_constant":
                positive = (mask.weight.reshape(-1).cpu() > 0)[kept]
                tensors[f"sign/{name}"] = _pack_bits(positive.numpy())
            else:
                tensors[f"draw/{name}"] = mask.draw.reshape(-1).cpu()[kept]
    prefixes = [_parametrized(name) for names in owners.values() for name in names]
    for key, tensor in model.state_dict().items():
        if not any(key.startswith(prefix) for prefix in prefixes):
            tensors[f"state/{key}"] = tensor.detach().cpu().contiguous().clone()
    header = {
        "schema": SCHEMA,
        "stream": streams.VERSION,
        "masks": masks,
        "checksums": {key: _checksum(tensor) for key, tensor in tensors.items()},
        **dict(about or {}),
    }
    write_tensors(path, tensors, {"regraft.ticket": json.dumps(header)})
    return Path(path).stat().st_size


def load_ticket(path: Path | str) -> Ticket:
    """Read a ticket file and check that it is whole.

    Raises:
        InputError: No such file, no ticket, damaged, or from a newer schema or stream version.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "ticket.safetensors"
    if not path.is_file():
        raise InputError(f"{path}: no such ticket; `regraft ticket find` writes one")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("regraft.ticket")
            if text is None:
                raise InputError(f"{path} is a safetensors file, but not a ticket")
            header = json.loads(text)
            if header["schema"] > SCHEMA or header["stream"] != streams.VERSION:
                raise InputError(
                    f"{path} has schema {header['schema']} and stream {header['stream']}, this "
                    f"version reads up to {SCHEMA} and {streams.VERSION}: update regraft"
                )
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        ticket = Ticket(header, tensors, path.stat().st_size)
        if tensors.keys() != header["checksums"].keys():
            raise ValueError("tensors are missing or too many")
        for key, tensor in tensors.items():
            if _checksum(tensor) != header["checksums"][key]:
                raise ValueError(f"the checksum of {key} is wrong")
        for name, entry in header["masks"].items():
            n = math.prod(entry["source"]["shape"])
            bits = tensors[f"mask/{name}"].numpy()
            if bits.size != -(-n // 8) or int(np.unpackbits(bits).sum()) != entry["kept"]:
                raise ValueError(f"the mask of {name} does not fit its header")
        return ticket
    except InputError:
        raise
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is not a readable ticket ({error})") from error


def fill(model: nn.Module, ticket: Ticket) -> nn.Module:
    """Load a ticket into a plain model of its architecture, in place, and return the model.

    Raises:
        InputError: The model is of another architecture; the first differing tensor is named.
    """
    have, want = model.state_dict(), ticket.state_dict()
    for key in want:
        if key not in have:
            raise InputError(f"the ticket has a tensor {key!r} that the model lacks")
        if have[key].shape != want[key].shape:
            raise InputError(
                f"{key!r} has shape {tuple(want[key].shape)} in the ticket and "
                f"{tuple(have[key].shape)} in the model"
            )
    for key in have:
        if key not in want:
            raise InputError(f"the model has a tensor {key!r} that the ticket lacks")
    model.load_state_dict(want)
    return model


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and floating-point buffers, as they stand."""
    return sum(
        t.numel() * t.element_size() for t in model.state_dict().values() if t.is_floating_point()
    )


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Return every name of each parametrised parameter, by the identity of its parametrisations."""
    names: dict[int, list[str]] = {}
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for attribute, entry in module.parametrizations.items():  # pyrefly: ignore
                if any(isinstance(p, Mask) for p in entry):
                    name = f"{prefix}.{attribute}" if prefix else attribute
                    names.setdefault(id(entry), []).append(name)
    return names


def _parametrized(name: str) -> str:
    prefix, _, attribute = name.rpartition(".")
    return f"{prefix}{'.' if prefix else ''}parametrizations.{attribute}."


def _checksum(tensor: Tensor) -> str:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _pack_bits(flags: np.ndarray) -> Tensor:
    return torch.from_numpy(np.packbits(flags, bitorder="little"))
