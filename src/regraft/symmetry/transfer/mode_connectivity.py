"""How a transferred network is connected to those it comes from.

References:
    Chijiwa 2024 (arXiv 2305.14122), section 4.3: loss along the lines from the target's own solution,
    and from the permuted source, to the transferred network, and over planes through three of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from regraft.protocols import BatchSource
from regraft.symmetry.merge.connectivity import Curve, Plane, interpolation, plane
from regraft.symmetry.merge.repair import Batches
from regraft.symmetry.spec.permutation import Permutation
from regraft.symmetry.spec.spec import PermutationSpec


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Lines to a transferred network, and the plane it lies in.

    Attributes:
        curves: By name: `permuted source`, and where they are known `trained target` and `between`
            (from the trained target to the permuted source); all end at the transferred network but
            the last.
        plane: Through the trained target, the transferred network and the permuted source.
    """

    curves: dict[str, Curve]
    plane: Plane | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "curves": {name: curve.to_dict() for name, curve in self.curves.items()},
            "plane": None if self.plane is None else self.plane.to_dict(),
        }


def connect(
    model: nn.Module,
    transferred: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    spec: PermutationSpec,
    permutation: Permutation,
    sources: Sequence[BatchSource],
    *,
    trained: Mapping[str, Tensor] | None = None,
    statistics: Batches | None = None,
    points: int = 25,
    plane_points: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Connection:
    """Measure the lines, and the plane, between a transferred network and where it comes from.

    Args:
        model: A network of the architecture; it is not changed.
        transferred: The transferred network.
        source: The source after its training, not permuted.
        spec: Symmetries of the architecture.
        permutation: The permutation of the source that the transfer used.
        sources: What to measure on.
        trained: The target after its own training.
        statistics: Batches to take BatchNorm statistics from at every point between the ends.
        points: Positions on each line, the ends included.
        plane_points: Positions along each axis of the plane; 0 measures none. It needs `trained`.
        progress: Called with the points measured and their number, over all lines.

    Raises:
        InputError: States that do not fit, or too few points.
    """
    moved = spec.apply(source, permutation)
    lines: dict[str, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] = {
        "permuted source": (moved, transferred)
    }
    if trained is not None:
        lines["trained target"] = (trained, transferred)
        lines["between"] = (trained, moved)
    curves = {}
    for i, (name, (a, b)) in enumerate(lines.items()):

        def report(done: int, count: int, i: int = i) -> None:
            if progress:
                progress(i * count + done, len(lines) * count)

        curves[name] = interpolation(
            model,
            a,
            b,
            sources,
            points=points,
            statistics=statistics,
            repair="reset",
            progress=report,
        )
    surface = None
    if trained is not None and plane_points:
        states = (trained, transferred, moved)
        surface = plane(model, states, sources, points=plane_points, statistics=statistics)
    return Connection(curves=curves, plane=surface)
