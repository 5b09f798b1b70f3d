"""Learning rate and weight chosen on validation, within a budget of time.

What is compared depends on the budget; what comes out of a comparison does not. So the plan is made
once, from a few measured steps, and written down before the first trial: the same command goes on
with the same plan, and `trials` makes it the same everywhere.

References:
    Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
    optimization", AISTATS 2016 (successive halving).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regraft.config import SearchConfig
from regraft.errors import DivergenceError, InputError
from regraft.features import METHODS
from regraft.files import write_text
from regraft.train import RunFolder, read_json
from regraft.train.loop import Progress

from .engine import Tuner
from .methods import has_weight, own_weight

Stage = Callable[[str], Progress | None]
"""Called with what begins now; returns what to call after each of its steps."""

_RATES = {"sgd": (0.01, 0.03, 0.003, 0.1, 0.001), "adamw": (1e-4, 3e-4, 3e-5, 1e-3, 1e-5)}
_SHORT = 3
_KEPT = 3
_FEWEST = 6


@dataclass(frozen=True)
class Setting:
    """What a trial tries."""

    lr: float
    weight: float | None

    def __str__(self) -> str:
        return f"lr={self.lr:g}" + ("" if self.weight is None else f" weight={self.weight:g}")


@dataclass(frozen=True)
class Rung:
    """The best `trials` settings of the rung before, or the first of all, trained for `epochs`."""

    trials: int
    epochs: int


def settings(tuner: Tuner, config: SearchConfig, lr: float | None) -> list[Setting]:
    """Return what there is to choose from, the most promising first.

    The grid is learning rates by weights. A plan with few trials takes the first, so the order goes
    outwards from the two defaults.
    """
    finetune = tuner.finetune
    scale = METHODS[finetune.method].rate_scale
    own_rates = tuple(round(scale * rate, 12) for rate in _RATES[tuner.optim.optimizer])
    rates = (lr,) if lr is not None else config.lr or own_rates
    weights: tuple[float | None, ...] = (None,)
    if has_weight(finetune.method):
        if finetune.weight is not None:
            weights = (finetune.weight,)
        elif config.weight:
            weights = config.weight
        else:
            own, relative = own_weight(finetune)
            weights = tuple(own * f for f in ((1.0, 0.3, 0.1) if relative else (1.0, 0.1, 10.0)))
    places = sorted(
        ((i, j) for i in range(len(rates)) for j in range(len(weights))),
        key=lambda at: (sum(at), at[0]),
    )
    return [Setting(rates[i], weights[j]) for i, j in places]


def plan(
    count: int, epochs: int, seconds: float, *, epoch: float, start: float
) -> tuple[Rung, ...] | None:
    """Return the rungs that fit into a time, None where not even two short trials do.

    In this order: every setting at full length; halving, a third of the length for the first n
    settings (six at least) and full length for the best third of them (two at least); a third of
    the length alone.

    Args:
        count: Settings there are.
        epochs: Full length.
        seconds: The time.
        epoch: Seconds an epoch takes.
        start: Seconds a trial takes before its first step.
    """
    short = max(1, epochs // _SHORT)
    options = [(Rung(count, epochs),)]
    options += [_halving(n, epochs) for n in range(count, min(count, _FEWEST) - 1, -1)]
    options += [(Rung(n, short),) for n in range(count, 1, -1)]
    for rungs in options:
        if sum(r.trials * (start + r.epochs * epoch) for r in rungs) <= seconds:
            return rungs
    return None


def _halving(trials: int, epochs: int) -> tuple[Rung, ...]:
    short = max(1, epochs // _SHORT)
    if short == epochs:
        return (Rung(trials, epochs),)
    return (Rung(trials, short), Rung(max(2, math.ceil(trials / _KEPT)), epochs))


def search(
    tuner: Tuner,
    config: SearchConfig,
    path: Path,
    *,
    lr: float | None,
    epochs: int,
    identity: dict[str, Any],
    stage: Stage,
) -> tuple[Setting, dict[str, Any]]:
    """Return the chosen setting and everything that was tried, kept in `path`/search.json.

    The setting of the highest validation accuracy at full length wins; of equal ones that of the
    lower validation loss, then the earlier one. A trial that diverges is out.

    Args:
        tuner: What trains.
        config: Budget and grids.
        path: The run's folder; trials lie below it, and go on where they were stopped.
        lr: The learning rate where it is given.
        epochs: Full length.
        identity: What else determines a trial.
        stage: Told what begins.

    Raises:
        InputError: The budget is too small for two trials.
        DivergenceError: Every trial diverged.
    """
    candidates = settings(tuner, config, lr)
    if len(candidates) == 1:
        return candidates[0], {"trials": [], "chosen": asdict(candidates[0])}
    file = path / "search.json"
    kept = read_json(file) or {}
    if "rungs" not in kept:
        kept = _planned(tuner, config, candidates, epochs)
        _write(file, kept)
    rungs = [Rung(**rung) for rung in kept["rungs"]]
    left, trials = candidates[: rungs[0].trials], []
    total, done = sum(rung.trials for rung in rungs), 0
    for rung in rungs:
        ranked = []
        for place, setting in enumerate(left[: rung.trials]):
            done += 1
            shown = stage(f"trial {done}/{total} {setting}")
            found = _trial(tuner, path / "search", setting, rung.epochs, identity, shown)
            trials.append({**asdict(setting), "epochs": rung.epochs, **found})
            if "diverged" not in found:
                score = (-found["validation_accuracy"], found["validation_loss"], place)
                ranked.append((score, setting))
        if not ranked:
            raise DivergenceError(
                f"every trial of the search diverged ({trials[-1]['diverged']}): give lower learning "
                "rates with --lr"
            )
        left = [setting for _, setting in sorted(ranked, key=lambda pair: pair[0])]
    kept |= {"trials": trials, "chosen": asdict(left[0])}
    _write(file, kept)
    return left[0], kept


def _planned(
    tuner: Tuner, config: SearchConfig, candidates: Sequence[Setting], epochs: int
) -> dict[str, Any]:
    if config.trials is not None:
        fixed = _halving(min(config.trials, len(candidates)), epochs)
        return {"rungs": [asdict(rung) for rung in fixed]}
    epoch, start = tuner.measure()
    rungs = plan(len(candidates), epochs, config.seconds, epoch=epoch, start=start)
    if rungs is None:
        one = start + max(1, epochs // _SHORT) * epoch
        raise InputError(
            f"budget of {config.seconds:g} seconds: one trial takes about {one:.2g} seconds and a choice "
            f"needs two: give at least --budget {math.ceil(2.2 * one)}s, or name the values with --lr "
            "and --weight"
        )
    return {
        "budget_seconds": config.seconds,
        "epoch_seconds": epoch,
        "start_seconds": start,
        "rungs": [asdict(rung) for rung in rungs],
    }


def _trial(
    tuner: Tuner,
    path: Path,
    setting: Setting,
    epochs: int,
    identity: dict[str, Any],
    progress: Progress | None,
) -> dict[str, Any]:
    name = str(setting).replace(" ", "-")
    with RunFolder(
        path / f"{epochs}-epochs" / name,
        config={**identity, "setting": asdict(setting), "epochs": epochs},
        setting=f"search/epochs={epochs}",
        arm=name,
        seed=tuner.runtime.seed,
    ) as folder:
        known = folder.result
        result: dict[str, Any] = known or {}
        if known is None:
            try:
                _, result = tuner.train(
                    setting.lr, setting.weight, epochs, folder, progress=progress
                )
            except DivergenceError as error:
                result = {"metrics": {}, "seconds": None, "diverged": str(error)}
            folder.finish(result)
        # What a trial learned is in its result; weights would fill the disk.
        (folder.path / "checkpoint.safetensors").unlink(missing_ok=True)
    found = {k: result["metrics"].get(f"validation_{k}") for k in ("accuracy", "loss")}
    if "diverged" in result:
        return {"diverged": result["diverged"]}
    return {
        "validation_accuracy": found["accuracy"],
        "validation_loss": found["loss"],
        "selected_epoch": result["metrics"].get("selected_epoch"),
        "seconds": result["seconds"],
    }


def _write(file: Path, value: dict[str, Any]) -> None:
    write_text(file, json.dumps(value, indent=2) + "\n")
