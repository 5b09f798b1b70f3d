"""A found ticket in memory: bits, a seed, and the few tensors that no seed gives back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regraft.errors import InputError

from .file.coder import Bits, entropy_bits
from .freeze import FrozenPattern
from .mask import kept_scale
from .source import WeightSource


@dataclass(frozen=True, eq=False)
class TicketLayer:
    """One masked weight of a ticket.

    Attributes:
        source: Where W comes from.
        kept: M at the searched positions, in ascending flat position.
        pattern: Which positions are frozen; None means that all are searched.
        dynamic_scale: Whether the weight is multiplied by 1/sqrt(kept share).
        tied: Further names of the same parameter.
        flips: For a signed constant that was re-randomised: for each kept searched position,
            whether its sign differs from the first draw's; None means that no sign does.
        draws: For other laws: the event each kept searched position was last drawn at, integers
            [kept.ones]; None means that all stand as first drawn.
    """

    source: WeightSource
    kept: Bits
    pattern: FrozenPattern | None = None
    dynamic_scale: bool = False
    tied: tuple[str, ...] = ()
    flips: Bits | None = None
    draws: np.ndarray | None = None

    @property
    def pruned(self) -> int:
        """Number of positions pruned for good."""
        return self.pattern.pruned if self.pattern else 0

    @property
    def locked(self) -> int:
        """Number of positions locked into the subnetwork."""
        return self.pattern.locked if self.pattern else 0

    @property
    def nonzero(self) -> int:
        """Number of positions in the subnetwork, locked ones included."""
        return self.kept.ones + self.locked

    def mask(self) -> Tensor:
        """Return M, bool, shaped like the weight."""
        return torch.from_numpy(self._mask()[0]).reshape(self.source.shape)

    def weight(self) -> Tensor:
        """Return (W * M) * c, float32, with +0 outside the subnetwork."""
        mask, positions = self._mask()
        if self.draws is not None:
            draw = np.zeros(self.source.numel, dtype=self.draws.dtype)
            draw[self._kept_positions(positions)] = self.draws
            values = self.source.rebuild(torch.from_numpy(draw)).reshape(-1).numpy()
        else:
            values = self.source.draw().numpy()
        if self.flips is not None:
            flipped = self._kept_positions(positions)[self.flips.array()]
            values[flipped] *= np.float32(-1)
        # A product with M would leave -0 where a negative weight is pruned.
        values.view(np.int32)[...] &= -mask.view(np.int8).astype(np.int32)
        if self.dynamic_scale:
            values *= kept_scale(self.nonzero, self.source.numel).numpy()
        return torch.from_numpy(values).reshape(self.source.shape)

    def entropy(self) -> dict[str, float]:
        """Return the bits that no code without context beats, of `masks`, `signs` and `draws`."""
        drawn = [] if self.draws is None else np.unique(self.draws, return_counts=True)[1]
        return {
            "masks": self.kept.entropy_bits(),
            "signs": 0.0 if self.flips is None else self.flips.entropy_bits(),
            "draws": entropy_bits(drawn),
        }

    def _mask(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return M flat and, with a pattern, the searched positions."""
        kept = self.kept.array()
        if self.pattern is None:
            return kept, None
        parts = self.pattern.parts()
        free = np.flatnonzero(parts == 0)
        mask = parts == 1
        mask[free] = kept
        return mask, free

    def _kept_positions(self, free: np.ndarray | None) -> np.ndarray:
        kept = self.kept.array()
        return np.flatnonzero(kept) if free is None else free[kept]


@dataclass(frozen=True, eq=False)
class Ticket:
    """A ticket: what a packed file holds.

    Attributes:
        layers: The masked weights by parameter name, in the order of the network.
        state: Every other tensor of the network's state dict, by key.
        about: What the ticket is of: `model`, `classes`, `input`, `mean`, `std`, `data`, ...
        aliases: Keys of the state dict that share their tensor with another, by key.
        header: The JSON header of the file it was read from; empty otherwise.
        sizes: Bytes of the file by part; empty where there is no file.
    """

    layers: dict[str, TicketLayer]
    state: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(self.sizes.values())

    def bytes_by_part(self) -> dict[str, int]:
        """Return the bytes of masks, signs, draws, state and header; they add up to the file's."""
        return dict(self.sizes)

    def entropy_bound(self) -> int:
        """Return the bytes that no context-free code of masks, signs and draws beats.

        The bound is sum_l n_l H(d_l) over layers, each at its own density.
        """
        total = Counter[str]()
        for layer in self.layers.values():
            total.update(layer.entropy())
        return int(-(-sum(total.values()) // 8))

    def masks(self) -> dict[str, Tensor]:
        """Return the masks by parameter name, bool."""
        return {name: layer.mask() for name, layer in self.layers.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of the plain network, without making one."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, layer in self.layers.items():
            shapes |= dict.fromkeys((name, *layer.tied), layer.source.shape)
        shapes |= {key: tuple(tensor.shape) for key, tensor in self.state.items()}
        return shapes | {key: shapes[original] for key, original in self.aliases.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state dict of the plain network, masked weights as (W * M) * c in float32."""
        state = dict(self.state)
        state |= {key: state[original] for key, original in self.aliases.items()}
        for name, layer in self.layers.items():
            state |= dict.fromkeys((name, *layer.tied), layer.weight())
        return state


def fill(model: nn.Module, ticket: Ticket) -> nn.Module:
    """Load a ticket into a plain model of its architecture, in place, and return the model.

    No weight is made before all names and shapes have been compared.

    Raises:
        InputError: The model is of another architecture; the first differing tensor is named.
    """
    compare(model, ticket)
    model.load_state_dict(ticket.state_dict())
    return model


def compare(model: nn.Module, ticket: Ticket) -> None:
    """Compare names and shapes of a plain model's tensors with a ticket's; no values are looked at.

    Raises:
        InputError: The model is of another architecture; the first differing tensor is named.
    """
    have, want = model.state_dict(), ticket.shapes()
    cure = f"build the architecture the ticket was found in{_named(ticket)}"
    for key, tensor in have.items():
        if key not in want:
            raise InputError(f"the model has a tensor {key!r} that the ticket lacks: {cure}")
        if tuple(tensor.shape) != want[key]:
            raise InputError(
                f"{key!r} has shape {want[key]} in the ticket and {tuple(tensor.shape)} in the model: "
                f"{cure}"
            )
    for key in want:
        if key not in have:
            raise InputError(f"the ticket has a tensor {key!r} that the model lacks: {cure}")


def _named(ticket: Ticket) -> str:
    model = ticket.about.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    return f" ({name})" if isinstance(name, str) else ""


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and floating-point buffers, as they stand."""
    return sum(
        t.numel() * t.element_size() for t in model.state_dict().values() if t.is_floating_point()
    )
