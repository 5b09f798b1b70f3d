"""Lines and planes between the networks of the recipe `transfer`: measured, logged and drawn.

References:
    Chijiwa 2024 (arXiv 2305.14122), section 4.3: lines to the transferred network, and planes through
    the trained target, the oracle's network and the transferred one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from regraft.errors import InputError
from regraft.report import Run
from regraft.report.surface import Surface, surfaces
from regraft.symmetry.merge.connectivity import Plane
from regraft.symmetry.transfer.mode_connectivity import Connection
from regraft.symmetry.transfer.transfer import Transferred

State = dict[str, Tensor]

_LINES = {"trained target": "target", "permuted source": "source", "between": "between"}
"""Lines to the transferred network, and the one between both solutions, by their names in metrics."""
_NAMES = ("the target's own solution", "the oracle's network", "the transferred one")


def barriers(found: Connection) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return the barriers on the lines as metrics, and rows with the scores along them."""
    metrics, rows = {}, []
    for name, short in _LINES.items():
        curve = found.curves[name]
        metrics[f"{short}_barrier"] = curve.loss_barrier
        metrics[f"{short}_accuracy_barrier"] = curve.accuracy_barrier
        for i, (x, score) in enumerate(zip(curve.at, curve.scores, strict=True)):
            row = {"step": i, "epoch": 0, "split": f"path_{short}", "at": x}
            rows.append({**row, "loss": score.loss, "accuracy": score.accuracy})
    return metrics, rows


def chosen(steps: Iterable[Transferred], accuracy: Callable[[State], float], start: str) -> State:
    """Return the weights of the most accurate step, the first of several, or of the last.

    Raises:
        InputError: There are no steps.
    """
    highest, found = -1.0, None
    for at in steps:
        value = accuracy(at.weights) if start == "best" else highest + 1
        if value > highest:
            highest, found = value, at.weights
    if found is None:
        raise InputError("the trajectory has no steps: a plane needs the oracle's network")
    return found


def plane_rows(found: Plane) -> list[dict[str, Any]]:
    """Return rows with the scores over a plane, and with where its three networks lie."""
    rows = []
    for i, y in enumerate(found.y):
        for j, x in enumerate(found.x):
            row = {"step": i * len(found.x) + j, "epoch": 0, "split": "plane", "x": x, "y": y}
            rows.append({**row, "loss": found.loss[i][j], "accuracy": found.accuracy[i][j]})
    for i, (x, y) in enumerate(found.points):
        rows.append({"step": i, "epoch": 0, "split": "plane_network", "x": x, "y": y})
    return rows


def planes(runs: Sequence[Run], settings: Sequence[str]) -> str | None:
    """Draw the accuracy over the plane of each setting's first seed and each arm that has one.

    Planes of several seeds have no axes in common, so that they cannot be averaged.
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
    named = "; ".join(f"{i}: {name}" for i, name in enumerate(_NAMES, start=1))
    return surfaces(panels, label=f"Test accuracy (%). {named}")


def _surface(run: Run) -> Surface:
    rows = [row for row in run.history if row["split"] == "plane"]
    xs, ys = (sorted({row[axis] for row in rows}) for axis in ("x", "y"))
    found = {(row["x"], row["y"]): row["accuracy"] for row in rows}
    return Surface(
        title=f"{run.setting}/{run.arm}, seed {run.seed}",
        x=xs,
        y=ys,
        values=[[found[x, y] for x in xs] for y in ys],
        points=[(r["x"], r["y"]) for r in run.history if r["split"] == "plane_network"],
    )
