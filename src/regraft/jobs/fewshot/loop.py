"""The outer loop: episodes, optimiser steps, checkpoints; it resumes to the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from regraft.config import OuterConfig, RuntimeConfig
from regraft.errors import DivergenceError
from regraft.fewshot import EpisodeSampler, Learner, MetaTicket, Reptile
from regraft.protocols import Stepper
from regraft.train import RunFolder
from regraft.train.loop import Progress

Measured = Callable[[], dict[str, float]]


def fit_episodes(
    learner: Learner,
    sampler: EpisodeSampler,
    outer: OuterConfig,
    runtime: RuntimeConfig,
    folder: RunFolder,
    *,
    measure: Measured,
    measure_every: int,
    stepper: Stepper | None = None,
    progress: Progress | None = None,
) -> float:
    """Meta-train a learner in place, or go on; return the seconds of its steps alone.

    Args:
        learner: What is trained.
        sampler: Where episodes come from: step s takes the numbers tasks * s to tasks * (s + 1) - 1.
        outer: Steps and optimiser.
        runtime: How often is saved and logged.
        folder: The run's folder.
        measure: Called every `measure_every` steps and after the last; its figures are logged.
        measure_every: Steps between two measurements.
        stepper: What happens over time, such as IteRand.
        progress: Called with steps done, steps in all, and the newest measurement.

    Raises:
        DivergenceError: The loss is no finite number; the step is named.
    """
    optimizer, base = _optimizer(learner, outer)
    start, seconds, length = 0, 0.0, 0
    state = folder.load_checkpoint()
    if state is not None:
        learner.load_state_dict(state["learner"])
        optimizer.load_state_dict(state["optimizer"])
        if stepper is not None:
            stepper.load_state_dict(state["stepper"])
        start, seconds, length = state["step"], state["seconds"], state["metrics"]
    folder.truncate_metrics(length)

    def save(step: int) -> None:
        state = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        state |= {"seconds": seconds, "metrics": folder.sync_metrics()}
        state |= {"stepper": stepper.state_dict()} if stepper is not None else {}
        folder.save_checkpoint(state)

    saved = time.monotonic()
    row: dict[str, Any] = {}
    for step in range(start, outer.steps):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = base * lr_share(outer, step)
        try:
            loss = learner(sampler.batch(step * outer.tasks, outer.tasks))
        except DivergenceError as error:
            raise DivergenceError(f"outer step {step + 1}: {error}") from error
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if stepper is not None:
            stepper.step()
        seconds += time.perf_counter() - began
        done = step + 1
        if done % runtime.log_every == 0 or done == outer.steps:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise DivergenceError(
                    f"outer step {done}: the loss is {value}; lower --lr or --inner-lr"
                )
            folder.log({"step": done, "epoch": done, "split": "train", "loss": value})
        if done % measure_every == 0 or done == outer.steps:
            figures = measure()
            folder.log({"step": done, "epoch": done, "split": "validation", **figures})
            row = {"loss": figures["loss"], "accuracy": figures["accuracy"]}
        if progress is not None:
            progress(done, outer.steps, row)
        if time.monotonic() - saved >= runtime.checkpoint_seconds or done == outer.steps:
            save(done)
            saved = time.monotonic()
    return seconds


def lr_share(outer: OuterConfig, step: int) -> float:
    """Return lr(step) / lr: (s + 1) / (W + 1) in warm-up, then constant or half a cosine to 0."""
    if step < outer.warmup:
        return (step + 1) / (outer.warmup + 1)
    if outer.schedule == "constant":
        return 1.0
    share = (step - outer.warmup) / max(outer.steps - outer.warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * share))


def _optimizer(learner: Learner, outer: OuterConfig) -> tuple[torch.optim.Optimizer, float]:
    parameters = [p for p in learner.parameters() if p.requires_grad]
    if isinstance(learner, MetaTicket):
        lr = outer.lr or 10.0
        return torch.optim.SGD(parameters, lr=lr, momentum=outer.momentum), lr
    if isinstance(learner, Reptile):
        lr = outer.lr or 1.0
        return torch.optim.SGD(parameters, lr=lr), lr
    lr = outer.lr or 1e-3
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0), lr
