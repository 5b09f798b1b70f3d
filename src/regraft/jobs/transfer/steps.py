"""A method along the trajectory: every step measured, the best and the last kept."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from regraft.config import RuntimeConfig
from regraft.errors import InputError
from regraft.jobs.stages import Shown, begin
from regraft.symmetry.transfer.transfer import Costs, Transferred, transfer
from regraft.train import RunFolder

from .config import TransferConfig, TransferMethod
from .networks import Networks


@dataclass(eq=False)
class Steps:
    """What a method made of the target.

    Attributes:
        rows: What was measured at each step, for the card.
        best: The step of the best validation accuracy, the first of several; without data the last.
        last: The last step.
        tracing: Seconds that finding the symmetries took; the naive transfer needs none.
        choosing: Seconds of the scores that the best step was chosen by.
        scores: Scores of the `best` and the `final` step on all images, where there are data.
    """

    rows: list[dict[str, Any]]
    best: Transferred
    last: Transferred
    tracing: float
    choosing: float
    scores: dict[str, dict[str, float]]

    @property
    def seconds(self) -> float:
        """Seconds of the transfer with all that it needs."""
        return self.last.costs.total + self.tracing + self.choosing

    @property
    def best_at(self) -> int:
        """Number of the best step, from 1."""
        return 1 + next(i for i, row in enumerate(self.rows) if row["step"] == self.best.step)

    def start(self, which: str) -> Transferred:
        """Return the step to go on from: `best` or `final`."""
        return self.best if which == "best" else self.last


def along(
    networks: Networks,
    config: TransferConfig,
    runtime: RuntimeConfig,
    method: TransferMethod,
    folder: RunFolder,
    progress: Shown = None,
) -> Steps:
    """Carry the source over by a method; what an interrupted run has found is not found again.

    Args:
        networks: What is carried over to what.
        config: How.
        runtime: Seed and threads.
        method: The method; that of `config` or one of its controls.
        folder: Keeps what is through; its `steps/` gets every step that is to be kept.
        progress: Shown.

    Raises:
        RegraftError: What does not fit, in one sentence.
    """

    def make() -> dict[str, Any]:
        return _packed(_measured(networks, config, runtime, method, folder.path, progress))

    return _unpacked(folder.kept(f"steps-{method}", make), networks.device)


def _measured(
    networks: Networks,
    config: TransferConfig,
    runtime: RuntimeConfig,
    method: TransferMethod,
    folder: Path,
    progress: Shown,
) -> Steps:
    model, images = networks.model, networks.images
    steps = transfer(
        networks.trajectory,
        networks.target,
        networks.spec,
        networks.gradients(),
        by=method,
        trained=networks.trained,
        scale=config.factor,
        statistics=None if images is None else images.statistics,
        seed=runtime.seed,
        workers=runtime.threads,
    )
    rows: list[dict[str, Any]] = []
    best = last = None
    highest, choosing = -1.0, 0.0
    show = begin(progress, method)
    for i, at in enumerate(steps, start=1):
        scores: dict[str, float] = {}
        if images is not None:
            began = time.perf_counter()
            scores = images.score(model, at.weights, parts=("validation",))
            choosing += time.perf_counter() - began
            scores |= images.score(model, at.weights, parts=("test",))
        rows.append(_row(at, scores))
        last = at
        accuracy = scores.get("validation_accuracy", float(i))
        if accuracy > highest:
            highest, best = accuracy, at
        if config.keep_steps and method == config.match:
            path = folder / f"steps/step-{at.step:08d}.safetensors"
            networks.save(path, at.weights)
        if show is not None:
            row = {key: scores[f"test_{key}"] for key in ("loss", "accuracy") if scores}
            show(i, len(networks.trajectory), row)
    if best is None or last is None:
        raise InputError(f"{networks.trajectory.origin} has no steps to carry over")
    measured: dict[str, dict[str, float]] = {}
    if images is not None:
        measured["final"] = images.score(model, last.weights, everything=True)
        same = best is last
        measured["best"] = (
            measured["final"] if same else images.score(model, best.weights, everything=True)
        )
    tracing = 0.0 if method == "naive" else networks.tracing_seconds
    return Steps(rows, best, last, tracing, choosing, measured)


def _row(at: Transferred, scores: dict[str, float]) -> dict[str, Any]:
    return {
        "step": at.step,
        **scores,
        "objective": at.objective,
        "cosine": at.cosine,
        "cosine_before": at.cosine_before,
        "dead": list(at.dead),
        "costs": asdict(at.costs),
    }


_PLAIN = ("step", "objective", "cosine", "cosine_before", "sweeps")


def _packed(steps: Steps) -> dict[str, Any]:
    """Return what a method made as a tree of plain values and tensors."""
    points = {"last": steps.last}
    if steps.best is not steps.last:
        points["best"] = steps.best
    return {
        "rows": steps.rows,
        "tracing": steps.tracing,
        "choosing": steps.choosing,
        "scores": steps.scores,
        "points": {
            which: {
                **{name: getattr(at, name) for name in _PLAIN},
                "weights": at.weights,
                "permutation": dict(at.permutation),
                "dead": list(at.dead),
                "costs": asdict(at.costs),
            }
            for which, at in points.items()
        },
    }


def _unpacked(tree: dict[str, Any], device: torch.device) -> Steps:
    points = {
        which: Transferred(
            **{name: at[name] for name in _PLAIN},
            weights={k: v.to(device) for k, v in at["weights"].items()},
            permutation=at["permutation"],
            dead=tuple(at["dead"]),
            costs=Costs(**at["costs"]),
        )
        for which, at in tree["points"].items()
    }
    last = points["last"]
    return Steps(
        rows=tree["rows"],
        best=points.get("best", last),
        last=last,
        tracing=tree["tracing"],
        choosing=tree["choosing"],
        scores=tree["scores"],
    )
