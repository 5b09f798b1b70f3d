"""Planes through three networks, as runs have measured them, drawn side by side."""

from __future__ import annotations

from collections.abc import Sequence

from .runs import Run
from .surface import Surface, surfaces


def planes(runs: Sequence[Run], settings: Sequence[str], networks: Sequence[str]) -> str | None:
    """Draw the accuracy over the plane of each setting's first seed and each arm that has one.

    Planes of several seeds have no axes in common, so that they cannot be averaged.

    Args:
        runs: The runs; their history has rows of the splits `plane` and `plane_network`.
        settings: The settings, in the order of the drawing.
        networks: What the three networks are called, in their order.

    Returns:
        The drawing, None where no run has a plane.
    """
    panels = []
    for setting in settings:
        firsts: dict[str, Run] = {}
        for run in sorted((r for r in runs if r.setting == setting), key=lambda r: r.seed):
            if any(row["split"] == "plane" for row in run.history):
                firsts.setdefault(run.arm, run)
        panels += [_surface(run) for run in firsts.values()]
    if not panels:
        return None
    named = "; ".join(f"{i}: {name}" for i, name in enumerate(networks, start=1))
    return surfaces(panels, label=f"Test accuracy (%). {named}")


def _surface(run: Run) -> Surface:
    rows = [row for row in run.history if row["split"] == "plane"]
    xs, ys = (sorted({row[axis] for row in rows}) for axis in ("x", "y"))
    values = {(row["x"], row["y"]): row["accuracy"] for row in rows}
    return Surface(
        title=f"{run.setting}/{run.arm}, seed {run.seed}",
        x=xs,
        y=ys,
        values=[[values[x, y] for x in xs] for y in ys],
        points=[(r["x"], r["y"]) for r in run.history if r["split"] == "plane_network"],
    )
