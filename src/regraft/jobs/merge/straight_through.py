"""Straight-through matching of a model, which goes on where an interrupted run stopped."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from torch import Tensor

from regraft.jobs.stages import Shown, begin
from regraft.symmetry.match.straight_through import StraightThrough, StraightThroughConfig
from regraft.symmetry.spec.permutation import Permutation
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.train import RunFolder
from regraft.train.optim import lr_factor

from .config import AlignConfig
from .models import Models
from .surrogate import held_out, surrogate

State = dict[str, Tensor]

_CHUNK = 10
"""Steps between two looks at the clock."""


def learn(
    config: AlignConfig,
    models: Models,
    spec: PermutationSpec,
    a: State,
    b: State,
    *,
    model: int,
    folder: RunFolder,
    progress: Shown = None,
) -> tuple[Permutation, dict[str, Any]]:
    """Learn the permutation of B from labelled images, and return it with how it was found.

    Args:
        config: The settings.
        models: The network and its data.
        spec: Its symmetries.
        a: State dict of what B is aligned to.
        b: State dict B.
        model: Number of B, by which an interrupted run knows it.
        folder: Keeps the state every `runtime.checkpoint_seconds`.
        progress: Called with the steps done, all steps, and the newest row.
    """
    state = folder.load_checkpoint() or {"through": {}}
    if str(model) in state["through"]:
        kept = state["through"][str(model)]
        return kept["permutation"], json.loads(kept["record"])
    shown = begin(progress, "step")
    batches, images = surrogate(config, models, folder.path, shown)
    settings, optim, seed = config.ste, config.ste.optim, config.runtime.seed
    epoch_steps = len(batches)
    steps = epoch_steps * optim.epochs if settings.steps is None else settings.steps
    if settings.steps is not None:
        optim, epoch_steps = replace(optim, epochs=1), steps
    # A few images stand for all data, so candidates are compared on them; with all data at hand
    # those that were held out are the better judge.
    judges = held_out(config, models) if settings.surrogate == "full" else None
    run = StraightThrough(
        spec,
        models.model,
        a,
        b,
        batches,
        StraightThroughConfig(
            steps=steps,
            lr=optim.lr,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            max_sweeps=settings.sweeps,
            score_every=max(1, steps // 20),
            seed=seed,
            workers=config.runtime.threads or 1,
        ),
        score=judges,
        schedule=lr_factor(optim, epoch_steps),
    )
    seconds, scores = 0.0, []
    if "straight_through" in state:
        folder.truncate_metrics(state["metrics_bytes"])
        seconds, scores = state["seconds"], json.loads(state["scores"])
        run.load_state_dict(state["straight_through"])
    elif not state["through"]:
        folder.truncate_metrics(0)
    clock = saved = time.monotonic()

    def log(step: int, steps: int, row: dict[str, float]) -> None:
        newest: dict[str, Any] = {
            "step": step,
            "epoch": (step - 1) // len(batches),
            "split": "match",
            **row,
        }
        if "score" in row:
            scores.append(row["score"])
            folder.log(newest)
        if shown is not None:
            shown(step, steps, newest)

    while run.at.step < steps:
        run.run(until=run.at.step + _CHUNK, progress=log)
        now = time.monotonic()
        seconds, clock = seconds + now - clock, now
        if folder.writes and now - saved >= config.runtime.checkpoint_seconds:
            folder.save_checkpoint(
                {
                    "through": state["through"],
                    "straight_through": run.state_dict(),
                    "seconds": seconds,
                    "scores": json.dumps(scores),
                    "metrics_bytes": folder.sync_metrics(),
                }
            )
            saved = time.monotonic()
    permutation = run.at.best
    record = {
        "surrogate": settings.surrogate,
        "images": images,
        "chosen_on": "train" if judges is None else "validation",
        "sweeps": steps,
        "scores": scores,
        "best_step": run.at.best_step,
        "seconds": seconds,
    }
    if folder.writes:
        kept = {"permutation": dict(permutation), "record": json.dumps(record)}
        state = {"through": {**state["through"], str(model): kept}}
        folder.save_checkpoint({**state, "metrics_bytes": folder.sync_metrics()})
    return permutation, record
