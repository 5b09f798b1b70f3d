"""Lines and the plane between the transferred network and those that it is held against: measured.

References:
    Chijiwa 2024 (arXiv 2305.14122), section 4.3: lines to the transferred network, and planes through
    the trained target, the oracle's network and the transferred one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from regraft.errors import InputError
from regraft.jobs.stages import Shown, begin
from regraft.symmetry.merge.connectivity import plane
from regraft.symmetry.transfer.mode_connectivity import connect

from .config import TransferConfig
from .networks import Networks
from .steps import Steps


def lines_of(
    networks: Networks, config: TransferConfig, steps: Steps, progress: Shown = None
) -> dict[str, Any]:
    """Return the curves on the lines from both solutions to the transferred network, by name."""
    if networks.images is None or not config.points:
        return {}
    at, trained = steps.start(config.start), networks.trained
    show = begin(progress, "paths")
    connection = connect(
        networks.model,
        at.weights,
        networks.placed(networks.trajectory.state(-1)),
        networks.spec,
        at.permutation,
        [networks.images.few["test"]],
        trained=None if trained is None else networks.placed(trained),
        statistics=networks.images.statistics,
        points=config.points,
        progress=None if show is None else lambda done, count: show(done, count, {}),
    )
    return connection.to_dict()["curves"]


def plane_of(
    networks: Networks, config: TransferConfig, steps: Steps, oracle: Callable[[], Steps]
) -> dict[str, Any]:
    """Return scores over the plane through the trained target, the oracle's and the transferred network.

    Args:
        networks: What was carried over to what.
        config: How many points, and which step.
        steps: Those of the method.
        oracle: Returns those of the oracle.

    Returns:
        `plane`, or None where there is none, and `notes` that say why.
    """
    if networks.images is None or networks.trained is None or not config.plane_points:
        return {"plane": None, "notes": []}
    if config.match == "oracle":
        return {"plane": None, "notes": []}  # the oracle's is the transferred network itself
    ends = {"oracle": oracle(), config.match: steps}
    points = {method: end.start(config.start) for method, end in ends.items()}
    states = [networks.trained, *(at.weights for at in points.values())]
    try:
        measured = plane(
            networks.model,
            [networks.placed(state) for state in states],
            [networks.images.few["test"]],
            points=config.plane_points,
            statistics=networks.images.statistics,
        )
    except InputError as error:
        return {"plane": None, "notes": [f"no plane was measured: {error}"]}
    through = ["target, trained", *(f"{name}, step {at.step}" for name, at in points.items())]
    return {"plane": {"through": through, **measured.to_dict()}, "notes": []}
