"""Lines and the plane between the transferred network and those that it is held against.

References:
    Chijiwa 2024 (arXiv 2305.14122), section 4.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regraft.jobs.progress import Bar

if TYPE_CHECKING:
    from .arms import Along, Arm


def lines_of(along: Along, arm: Arm) -> dict[str, Any]:
    """Return the curves on the lines from both solutions to the transferred network, by name."""
    from regraft.symmetry.transfer.mode_connectivity import connect

    asked, given, trained = along.asked, along.given, along.trained
    if not given.data or not asked.points:
        return {}
    at = arm.start(asked.start)
    device = given.device
    with Bar(enabled=not asked.json, noun="paths", describe=lambda row: "") as bar:
        found = connect(
            given.model,
            at.weights,
            {k: v.to(device) for k, v in along.trajectory.state(-1).items()},
            along.spec,
            at.permutation,
            [along.bench.tested],
            trained=None if trained is None else {k: v.to(device) for k, v in trained.items()},
            statistics=along.statistics(),
            points=asked.points,
            progress=lambda done, count: bar.update(done, count, {}),
        )
    return found.to_dict()["curves"]


def plane_of(along: Along, arms: dict[str, Arm]) -> dict[str, Any]:
    """Return scores over the plane through the trained target, the oracle's and the transferred network.

    Returns:
        `plane`, or None where there is none, and `notes` that say why.
    """
    from regraft.errors import InputError
    from regraft.symmetry.merge.connectivity import plane

    asked, given = along.asked, along.given
    nothing: dict[str, Any] = {"plane": None, "notes": []}
    if along.trained is None or "oracle" not in arms or not asked.plane_points:
        return nothing
    if asked.by == "oracle":
        return nothing  # which is the transferred network itself
    points = [arms[by].start(asked.start) for by in ("oracle", asked.by)]
    states = [along.trained, *(at.weights for at in points)]
    try:
        found = plane(
            given.model,
            [{k: v.to(given.device) for k, v in state.items()} for state in states],
            [along.bench.tested],
            points=asked.plane_points,
            statistics=along.statistics(),
        )
    except InputError as error:
        return {"plane": None, "notes": [f"no plane was measured: {error}"]}
    names = ["target, trained", *(f"{by}, step {at.step}" for by, at in zip(
        ("oracle", asked.by), points, strict=True))]  # fmt: skip
    return {"plane": {"through": names, **found.to_dict()}, "notes": []}
