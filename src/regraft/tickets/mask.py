"""Masks as parametrisations: the trained tensor is the score, the weight is frozen and random.

A masked parameter `conv.weight` becomes

* `conv.parametrizations.weight.original`: the scores, the only trainable tensor;
* `conv.weight`: W * M(scores), computed at each access, with a straight-through gradient;
* a buffer with W that is not in checkpoints: the checkpoint holds the seed it is rebuilt from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from regraft import streams
from regraft.errors import InputError
from regraft.files import parse_json, reading

from .freeze import FrozenPattern
from .select import ThresholdSelector, flat_array, kth_value, kth_value_op, pruned_count
from .source import WeightSource
from .straight_through import masked_weight

SCHEMA = 1


class Mask(nn.Module):
    """Parametrisation scores -> W * 1[scores >= tau], the edge-popup subnetwork of one tensor.

    Args:
        source: Where W comes from.
        score_source: Where the first scores come from.
        sparsity: Fraction of the weights removed, s in [0, 1].
        magnitude: Compare |scores| instead of scores.
        dynamic_scale: Multiply by c = 1 / sqrt(kept share), without a gradient through c.

    Attributes:
        weight: W, a buffer shaped like the parameter, outside checkpoints.
        draw: Event at which each searched position of W was last drawn, shaped like the scores, or
            None where all stand as first drawn; inside checkpoints.
        pattern: What is frozen; None where every position is searched (see `FrozenMask`).
    """

    weight: Tensor
    draw: Tensor | None
    pattern: FrozenPattern | None = None

    def __init__(
        self,
        source: WeightSource,
        score_source: WeightSource,
        *,
        sparsity: float,
        magnitude: bool = False,
        dynamic_scale: bool = False,
    ) -> None:
        super().__init__()
        pruned_count(source.numel, sparsity)
        self.source = source
        self.score_source = score_source
        self.sparsity = float(sparsity)
        self.magnitude = magnitude
        self.dynamic_scale = dynamic_scale
        self.scope: GlobalScope | None = None
        self._selector = ThresholdSelector(magnitude=magnitude)
        self.register_buffer("weight", source.rebuild(), persistent=False)
        self.register_buffer("draw", None)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the first scores, with the dtype and device of the weight they replace."""
        self.weight = self.weight.to(weight)
        return self.score_source.rebuild().to(weight)

    def forward(self, scores: Tensor) -> Tensor:
        """Return W * M, or c * W * M with `dynamic_scale`, shaped like the parameter."""
        threshold = self.threshold(scores)
        masked = self.masked(scores, threshold)
        return _scaled(masked, self._scale(scores, threshold)) if self.dynamic_scale else masked

    def masked(self, scores: Tensor, threshold: Tensor | float) -> Tensor:
        """Return W * M for a threshold, shaped like the parameter."""
        return masked_weight(self.weight, scores, threshold, magnitude=self.magnitude)

    def kept(self, scores: Tensor) -> Tensor:
        """Return M at the searched positions, bool, shaped like `scores`."""
        return self._above(scores, self.threshold(scores))

    def mask(self, scores: Tensor) -> Tensor:
        """Return M, bool, shaped like the parameter."""
        return self.kept(scores)

    @property
    def searched(self) -> int:
        """Number of positions that have a score."""
        return self.source.numel

    def rank(self) -> int:
        """Return how many searched positions the sparsity prunes."""
        return pruned_count(self.source.numel, self.sparsity)

    def threshold(self, scores: Tensor) -> Tensor | float:
        """Return tau: a number on the CPU, elsewhere a 0-dim tensor without synchronisation."""
        if self.scope is not None:
            return self.scope.threshold(self)
        return select_threshold([scores], self.rank(), self._selector)

    def _above(self, scores: Tensor, threshold: Tensor | float) -> Tensor:
        scores = scores.detach()
        return (scores.abs() if self.magnitude else scores) >= threshold

    def _scale(self, scores: Tensor, threshold: Tensor | float) -> Tensor:
        """Return c = sqrt(n / kept), locked positions counted, a 0-dim tensor."""
        locked = 0 if self.pattern is None else self.pattern.locked
        kept = self._above(scores, threshold).sum() + locked
        return kept_scale(kept, self.source.numel).to(scores.dtype)

    def remember_draws_(self) -> Tensor:
        """Start keeping the event each position was drawn at, 0 so far, unless that is kept."""
        if self.draw is None:
            # Of 32 bits: where the masked network is a part of another module, DDP broadcasts its
            # buffers, and neither gloo nor NCCL can do that with 16.
            self.draw = torch.zeros(
                self._score_shape(), dtype=torch.int32, device=self.weight.device
            )
        return self.draw

    def redraw_(self, index: Tensor, event: int) -> None:
        """Replace W at searched positions `index` (int64, CPU) by the stream's values at `event`."""
        draw = self.remember_draws_()
        draw[torch.unravel_index(index.to(draw.device), draw.shape)] = event
        at = self.positions(index)
        where = torch.unravel_index(at.to(self.weight.device), self.weight.shape)
        self.weight[where] = self.source.draw(event, index=at.numpy()).to(self.weight)

    def positions(self, index: Tensor) -> Tensor:
        """Return the flat positions in the parameter of searched positions (int64, CPU)."""
        return index

    def _score_shape(self) -> torch.Size:
        return self.weight.shape

    def extra_repr(self) -> str:
        """Show the law, the seed and the sparsity."""
        size = "|score|" if self.magnitude else "score"
        return (
            f"{self.source.init}, seed={self.source.seed}, sparsity={self.sparsity:g} by {size}, "
            f"{self._scope_name()}" + (", dynamic scale" if self.dynamic_scale else "")
        )

    def get_extra_state(self) -> Tensor:
        """Return what rebuilds W, as UTF-8 JSON in a uint8 tensor (so that safetensors take it)."""
        state = {
            "schema": SCHEMA,
            "stream": streams.VERSION,
            "source": asdict(self.source),
            "sparsity": self.sparsity,
            "magnitude": self.magnitude,
            "scope": self._scope_name(),
            "dynamic_scale": self.dynamic_scale,
            "pattern": _counts(self.pattern),
        }
        return torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8).clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Take over a checkpoint's seed, law and sparsity and rebuild W; others raise `InputError`."""
        with reading(
            f"the state of the masked weight {self.source.name!r}", "load what a model saved"
        ):
            self._take_over(parse_json(bytes(state.cpu().tolist())))

    def _take_over(self, settings: dict[str, Any]) -> None:
        if settings["schema"] > SCHEMA or settings["stream"] != streams.VERSION:
            raise InputError(
                f"masked weight {settings['source']['name']!r} was saved with schema {settings['schema']} "
                f"and stream {settings['stream']}, this version reads schema {SCHEMA} and stream "
                f"{streams.VERSION}: load it with the version that wrote it"
            )
        source = WeightSource.from_json(settings["source"])
        if source.shape != self.source.shape:
            raise InputError(
                f"masked weight {source.name!r} has shape {source.shape} in the checkpoint and "
                f"{self.source.shape} in the model: build the model the checkpoint was made with"
            )
        if settings["scope"] != self._scope_name():
            raise InputError(
                f"masked weight {source.name!r} has scope {settings['scope']!r} in the checkpoint and "
                f"{self._scope_name()!r} in the model: mask both alike"
            )
        self._take_pattern(source, settings.get("pattern"))
        self.source = source
        self.sparsity = settings["sparsity"]
        self.magnitude = settings["magnitude"]
        self.dynamic_scale = settings.get("dynamic_scale", False)
        self._selector = ThresholdSelector(magnitude=self.magnitude)
        self._rebuild_()

    def _take_pattern(self, source: WeightSource, counts: dict[str, int] | None) -> None:
        """Take over what a checkpoint froze, if this mask can hold it."""
        if counts is not None:
            raise InputError(
                f"masked weight {source.name!r} is partly frozen in the checkpoint ({counts}) and not "
                "in the model: mask the model with the same `freezing`"
            )

    def _scope_name(self) -> str:
        return "layer" if self.scope is None else "global"

    def whole(self) -> Tensor:
        """Return W as it stands now, float32, on the CPU, with nothing pruned."""
        return self.source.rebuild(self.draw)

    def _rebuild_(self) -> None:
        self.weight = self.whole().to(self.weight)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # A state without anything of this mask (a partial load) leaves its draws alone.
        if f"{prefix}_extra_state" in state_dict:
            saved = state_dict.get(f"{prefix}draw")
            self.draw = None
            if saved is not None:
                self.draw = torch.zeros(saved.shape, dtype=torch.int32, device=self.weight.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Mask:
        before, empty = self.weight.dtype, self.weight.device.type == "meta"
        super()._apply(fn, recurse)
        if self.weight.device.type == "meta":
            return self
        if empty and self.draw is not None:
            self.draw.zero_()  # what `to_empty` leaves there is no event
        # Casting down and up again must give back the stream's values, not rounded ones, and memory
        # that `to_empty` has made must not pass for a weight: no checkpoint fills it.
        if empty or self.weight.dtype != before:
            self._rebuild_()
        return self


class GlobalScope:
    """One threshold for all masks of a model: tau is the order statistic of all scores together.

    The masks share the sparsity of the first. The threshold is found once per forward pass: anew
    as soon as a mask asks for the second time or any score tensor has changed.
    """

    def __init__(self, lists: list[parametrize.ParametrizationList]) -> None:
        self.lists = lists
        self._selector = ThresholdSelector(magnitude=self._masks()[0].magnitude)
        self._served: set[int] = set()
        self._seen: list[tuple[int, int]] = []
        self._threshold: Tensor | float = 0.0

    def _masks(self) -> list[Mask]:
        return [m for entry in self.lists for m in entry if isinstance(m, Mask)]

    def threshold(self, mask: Mask) -> Tensor | float:
        """Return the shared threshold for `mask`."""
        scores = [entry.original for entry in self.lists]
        if torch.compiler.is_compiling():
            return self._select(scores)
        try:
            versions = [(s.data_ptr(), s._version) for s in scores]
        except RuntimeError:  # tensors inside functorch transforms have neither
            return self._select(scores)
        first = self._masks()[0]
        versions.append((int(first.magnitude), hash(first.sparsity)))
        if id(mask) in self._served or versions != self._seen:
            self._threshold = self._select(scores)
            self._served.clear()
            self._seen = versions
        self._served.add(id(mask))
        return self._threshold

    def _select(self, scores: list[Tensor]) -> Tensor | float:
        first = self._masks()[0]
        if self._selector.magnitude != first.magnitude:
            self._selector = ThresholdSelector(magnitude=first.magnitude)
        return select_threshold(scores, self.rank(), self._selector)

    def rank(self) -> int:
        """Return how many searched positions the sparsity prunes, over all masks together."""
        masks = self._masks()
        rank = pruned_count(sum(m.source.numel for m in masks), masks[0].sparsity)
        rank -= sum(m.pattern.pruned for m in masks if m.pattern is not None)
        return min(max(rank, 0), sum(m.searched for m in masks) - 1)


def kept_scale(kept: Tensor | int, n: int) -> Tensor:
    """Return c = sqrt(n / kept), float32: the scale that keeps the variance of a full layer.

    Computed in float64 and rounded once, so that it has the same bits on every device; a tensor of
    which nothing is kept counts as one of which one weight is.

    References:
        Ramanujan et al., CVPR 2020 (scaled initialisations); Otsuka et al., TMLR 2025.
    """
    counted = torch.as_tensor(kept).clamp(min=1).double()
    return torch.sqrt(n / counted).float()


def _scaled(masked: Tensor, c: Tensor) -> Tensor:
    """Return c * W * M; in float64 the values are those of a product in float32, as in a ticket."""
    scaled = masked * c
    if scaled.dtype != torch.float64:
        return scaled
    # The difference is exact, and the gradient keeps its double precision.
    return scaled + (scaled.float().double() - scaled).detach()


def _counts(pattern: FrozenPattern | None) -> dict[str, int] | None:
    return None if pattern is None else {"pruned": pattern.pruned, "locked": pattern.locked}


def select_threshold(
    scores: list[Tensor], rank: int, selector: ThresholdSelector
) -> Tensor | float:
    """Return the order statistic `rank` of all `scores`, by the fastest exact way at hand."""
    if not torch.compiler.is_compiling() and scores[0].device.type == "cpu":
        try:
            return selector([flat_array(s) for s in scores], rank)
        except (RuntimeError, TypeError):
            pass  # functorch tensors and bfloat16 have no NumPy view: take the path below
    values = torch.cat([s.detach().reshape(-1) for s in scores])
    values = values.abs() if selector.magnitude else values
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return kth_value_op(values, rank)
    return kth_value(values, rank)


class FixedMask(nn.Module):
    """Parametrisation W -> W * M with a mask that never changes; W is trained where M is set.

    Args:
        mask: Bool, shaped like the weight.
    """

    fixed: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("fixed", mask.to(torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """Return W * M, shaped like `weight`."""
        return weight * self.fixed

    def mask(self, weight: Tensor) -> Tensor:
        """Return M, bool, shaped like the weight."""
        return self.fixed

    def extra_repr(self) -> str:
        """Show the shape and the sparsity."""
        kept = self.fixed.float().mean().item()
        return f"shape={tuple(self.fixed.shape)}, sparsity={1 - kept:.4g}"


AnyMask = Mask | FixedMask


def named_masks(model: nn.Module) -> Iterator[tuple[str, parametrize.ParametrizationList, AnyMask]]:
    """Yield (parameter name, its `ParametrizationList`, its mask), tied parameters once."""
    visited: set[int] = set()
    for prefix, module in model.named_modules(remove_duplicate=True):
        if not parametrize.is_parametrized(module):
            continue
        for name, entry in module.parametrizations.items():  # pyrefly: ignore
            mask = next((p for p in entry if isinstance(p, Mask | FixedMask)), None)
            if mask is not None and id(entry) not in visited:
                visited.add(id(entry))
                yield f"{prefix}.{name}" if prefix else name, entry, mask


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Return the current masks by parameter name, bool tensors.

    Raises:
        InputError: The model has none.
    """
    by_name = {name: mask.mask(entry.original).clone() for name, entry, mask in named_masks(model)}
    if not by_name:
        raise InputError("model has no masked weight: mask it first, with `edge_popup(model)`")
    return by_name


def sparsity(model: nn.Module) -> float:
    """Return the fraction of masked weights that is removed, over all masks together."""
    every = masks(model).values()
    return 1.0 - sum(int(m.sum()) for m in every) / sum(m.numel() for m in every)
