"""The mask of a partly frozen tensor: scores, momenta and mask bits for the free positions alone.

References:
    Otsuka et al., "Partially frozen random networks contain compact strong lottery tickets",
    TMLR 2025.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.errors import InputError

from .freeze import FrozenPattern
from .mask import Mask
from .partly import partly_masked_weight
from .source import WeightSource


class FrozenMask(Mask):
    """Parametrisation scores [free positions] -> W with the free positions masked.

    The effective weight is 0 where pruned for good, W where locked, and W * 1[scores >= tau] at the
    free positions; tau is such that the tensor's *total* sparsity, frozen weights included, is
    `sparsity`, as near as the free positions allow.

    Args:
        source: Where W comes from.
        score_source: Where the first scores come from; those of free positions are used.
        pattern: What is frozen.
        sparsity: Fraction of all weights removed.
        magnitude: Compare |scores| instead of scores.
        dynamic_scale: As in `Mask`.

    Attributes:
        free: Which positions are free, bool shaped like the parameter, outside checkpoints.

    Raises:
        InputError: A pattern of another number of positions.
    """

    free: Tensor
    pattern: FrozenPattern  # pyrefly: ignore

    def __init__(
        self,
        source: WeightSource,
        score_source: WeightSource,
        pattern: FrozenPattern,
        *,
        sparsity: float,
        magnitude: bool = False,
        dynamic_scale: bool = False,
    ) -> None:
        if pattern.numel != source.numel:
            raise InputError(
                f"pattern is for {pattern.numel} positions and weight {source.name!r} has "
                f"{source.numel}: make it for this tensor"
            )
        super().__init__(
            source,
            score_source,
            sparsity=sparsity,
            magnitude=magnitude,
            dynamic_scale=dynamic_scale,
        )
        self.pattern = pattern
        self.register_buffer("free", None, persistent=False)
        self._rebuild_()

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the first scores, with the dtype and device of the weight they replace."""
        # Picked before they move: nothing can be picked on the meta device.
        first = self.score_source.rebuild()[self.free.cpu()]
        self.weight = self.weight.to(weight)
        self.free = self.free.to(weight.device)
        return first.to(weight)

    def masked(self, scores: Tensor, threshold: Tensor | float) -> Tensor:
        """Return W with the free positions masked, shaped like the parameter."""
        return partly_masked_weight(
            self.weight, scores, self.free, threshold, magnitude=self.magnitude
        )

    def mask(self, scores: Tensor) -> Tensor:
        """Return M, bool, shaped like the parameter: False where pruned, True where locked."""
        parts = torch.from_numpy(self.pattern.parts() == 1).to(scores.device)
        return parts.reshape(self.weight.shape).masked_scatter(self.free, self.kept(scores))

    @property
    def searched(self) -> int:
        """Number of free positions."""
        return self.pattern.searched

    def rank(self) -> int:
        """Return how many free positions are pruned: the total less those pruned for good."""
        return min(max(super().rank() - self.pattern.pruned, 0), self.searched - 1)

    def positions(self, index: Tensor) -> Tensor:
        """Return the flat positions in the parameter of free positions (int64, CPU)."""
        return torch.nonzero(self.free.reshape(-1).cpu()).reshape(-1)[index]

    def extra_repr(self) -> str:
        """Show the frozen shares as well."""
        n = self.pattern.numel
        return (
            f"{super().extra_repr()}, pruned={self.pattern.pruned / n:.4g}, "
            f"locked={self.pattern.locked / n:.4g}"
        )

    def _take_pattern(self, source: WeightSource, counts: dict[str, int] | None) -> None:
        mine = (self.pattern.pruned, self.pattern.locked)
        stored = (0, 0) if counts is None else (counts["pruned"], counts["locked"])
        if stored != mine:
            raise InputError(
                f"masked weight {source.name!r} has (pruned, locked) = {stored} positions in the "
                f"checkpoint and {mine} in the model: mask the model with the same `freezing`"
            )
        self.pattern = FrozenPattern(source.seed, source.name, source.numel, *mine)

    def _score_shape(self) -> torch.Size:
        return torch.Size([self.searched])

    def whole(self) -> Tensor:
        """Return W as it stands now, float32, on the CPU, also where it is pruned for good."""
        return self._whole(self._parts())

    def _parts(self) -> Tensor:
        return torch.from_numpy(self.pattern.parts()).reshape(self.source.shape)

    def _whole(self, parts: Tensor) -> Tensor:
        if self.draw is None:
            return self.source.rebuild()
        draw = torch.zeros(self.source.shape, dtype=self.draw.dtype, device="cpu")
        draw[parts == 0] = self.draw.cpu()
        return self.source.rebuild(draw)

    def _rebuild_(self) -> None:
        parts = self._parts()
        weight = self._whole(parts).masked_fill_(parts == -1, 0.0)
        self.free = (parts == 0).to(self.weight.device)
        self.weight = weight.to(self.weight)


def build_mask(
    source: WeightSource,
    score_source: WeightSource,
    pattern: FrozenPattern | None = None,
    *,
    sparsity: float,
    magnitude: bool = False,
    dynamic_scale: bool = False,
) -> Mask:
    """Return a `FrozenMask` where a pattern freezes anything, else a plain `Mask`.

    Arguments and errors are those of the two classes.
    """
    more = {"sparsity": sparsity, "magnitude": magnitude, "dynamic_scale": dynamic_scale}
    if pattern is None or pattern.pruned + pattern.locked == 0:
        return Mask(source, score_source, **more)  # pyrefly: ignore
    return FrozenMask(source, score_source, pattern, **more)  # pyrefly: ignore
