"""Method, learning rate and weight chosen on validation, within a budget of time.

What is compared depends on the budget; what comes out of a comparison does not. So the plan is made
once, from a few measured steps, and written down before the first trial: the same command goes on
with the same plan, and `trials` makes it the same everywhere.

References:
    Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
    optimization", AISTATS 2016 (successive halving).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regraft.config import SearchConfig
from regraft.errors import DivergenceError, InputError
from regraft.files import write_json
from regraft.report.wording import duration
from regraft.train import read_json
from regraft.train.loop import Progress

from .folds import stratified_folds
from .settings import SHORT, Rung, Setting, halving, plan
from .trials import Trials

Stage = Callable[[str], Progress | None]
"""Called with what begins now; returns what to call after each of its steps."""

_REPEATS = 3


class BudgetError(InputError):
    """The budget holds no two trials."""


def search(
    trials: Trials,
    candidates: Sequence[Setting],
    config: SearchConfig,
    file: Path,
    *,
    epochs: int,
    stage: Stage,
) -> tuple[Setting, dict[str, Any]]:
    """Return the chosen setting and everything that was tried, kept in a file.

    The setting of the highest validation figure at full length wins; of equal ones that of the lower
    validation loss, then the earlier one. A trial that diverges is out. Without folds the state of the
    winner is kept.

    `candidates` have the most promising first, and `epochs` is full length.

    Raises:
        BudgetError: The budget is too small for two trials.
        DivergenceError: Every trial diverged.
    """
    kept: dict[str, Any] = read_json(file) or {}
    metric = trials.tuner.metric
    if "rungs" not in kept:
        kept = _planned(trials, config, candidates, epochs) | {"metric": metric}
        write_json(file, kept)
    if trials.folds:
        labels, seed = trials.tuner.splits.train.labels, trials.tuner.runtime.seed
        trials.divide(
            [stratified_folds(labels, trials.folds, seed, r) for r in range(kept["repeats"])]
        )
    rungs = [Rung(**rung) for rung in kept["rungs"]]
    left, records = list(candidates[: rungs[0].trials]), []
    total, done = sum(rung.trials for rung in rungs), 0
    for rung in rungs:
        ranked: list[tuple[tuple[float, float, int], Setting]] = []
        for place, setting in enumerate(left[: rung.trials]):
            done += 1
            shown = f"{setting.method} {setting}" if trials.several else str(setting)
            record = trials.run(setting, rung.epochs, stage(f"trial {done}/{total} {shown}"))
            records.append(record)
            if "diverged" not in record:
                figure, loss = record[f"validation_{metric}"], record["validation_loss"]
                ranked.append(((-figure, loss, place), setting))
                ranked.sort(key=lambda pair: pair[0])
            trials.keep_only(ranked[0][1] if ranked else None, epochs)
        if not ranked:
            raise DivergenceError(
                f"every trial of the search diverged ({records[-1]['diverged']}): give lower learning "
                "rates with --lr"
            )
        left = [setting for _, setting in ranked]
    kept |= {"trials": records, "chosen": asdict(left[0])}
    write_json(file, kept)
    return left[0], kept


def _planned(
    trials: Trials, config: SearchConfig, candidates: Sequence[Setting], epochs: int
) -> dict[str, Any]:
    each = trials.folds or 1
    folds = {"folds": trials.folds, "repeats": 1}
    if config.trials is not None:
        fixed = halving(min(config.trials, len(candidates)), epochs)
        return {**folds, "rungs": [asdict(rung) for rung in fixed]}
    epoch, start = (each * seconds for seconds in trials.tuner.using(candidates[-1]).measure())
    rungs = plan(len(candidates), epochs, config.seconds, epoch=epoch, start=start)
    if rungs is None:
        one = start + max(1, epochs // SHORT) * epoch
        raise BudgetError(
            f"--budget of {config.seconds:g} seconds: one trial takes about {duration(one)} and a choice "
            f"needs two: give at least --budget {math.ceil(2.2 * one)}s, or name the values with --lr "
            "and --weight, or take the first ones with --trials 1"
        )
    whole = sum(rung.trials * (start + rung.epochs * epoch) for rung in rungs)
    if trials.folds:
        folds["repeats"] = max(1, min(_REPEATS, int(config.seconds / whole)))
    return {
        **folds,
        "budget_seconds": config.seconds,
        "epoch_seconds": epoch,
        "start_seconds": start,
        "rungs": [asdict(rung) for rung in rungs],
    }
