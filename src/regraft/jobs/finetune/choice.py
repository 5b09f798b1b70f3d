"""From what could be trained to what is kept: probe, search, and the network of the chosen setting."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regraft.config import SearchConfig
from regraft.errors import InputError
from regraft.features.registry import AUTO, PROBE
from regraft.train import RunFolder, evaluate, outputs

from .engine import Tuner
from .folds import FEWEST, FOLDS, pooled, stratified_folds
from .probe import Probe, probe_of
from .search import BudgetError, Stage, search
from .settings import Setting, settings
from .trials import Trials, judged

_MODEL = ("accuracy", "loss")


@dataclass(frozen=True, eq=False)
class Selected:
    """The network that is kept, and what is known of it.

    Attributes:
        tuner: What trained it, with the images that it was trained on.
        model: The network.
        method: Its method.
        result: As of a training.
        searched: The probe, the plan, every trial, and what was chosen.
        validation: Logits [n, K] and labels [n] that nothing was trained on, by `basis`.
        basis: What the choice rested on, in a sentence.
    """

    tuner: Tuner
    model: nn.Module
    method: str
    result: dict[str, Any]
    searched: dict[str, Any]
    validation: tuple[Tensor, Tensor]
    basis: str = field(default="")


class Choice:
    """What chooses between settings, on validation images or on folds of all that are not for the test.

    `identity` is what else determines a trial; folds are of the validation images too
    `with_validation`; `probes` fits the linear probe of the start first.
    """

    def __init__(
        self,
        tuner: Tuner,
        config: SearchConfig,
        path: Path,
        *,
        lr: float | None,
        identity: dict[str, Any],
        with_validation: bool,
        probes: bool,
    ) -> None:
        finetune, optimizer = tuner.finetune, tuner.optim.optimizer
        self.candidates = settings(finetune, optimizer, config, lr)
        self.several = finetune.method == AUTO
        images = 0 if tuner.splits.validation is None else len(tuner.splits.validation)
        self.folds = 0
        if len(self.candidates) > 1 and config.trials != 1:
            few = FOLDS if images < FEWEST else 0
            self.folds = few if config.folds is None else config.folds
        if self.folds:
            splits = pooled(tuner.splits, with_validation=with_validation)
            self.folds = min(self.folds, max(2, len(splits.train) // 2))
            tuner = tuner.on(splits)
        self.tuner, self.config, self.path, self.probes = tuner, config, path, probes
        self.trials = Trials(
            tuner, path / "search", identity, folds=self.folds, several=self.several
        )

    def make(self, folder: RunFolder, stage: Stage) -> Selected:
        """Fit the probe, search, and return what is kept; a run that goes on repeats nothing."""
        epochs, file = self.tuner.optim.epochs, self.path / "search.json"
        probe = probe_of(self.tuner) if self.probes else None
        searched: dict[str, Any] = {"trials": []}
        if len(self.candidates) > 1:
            try:
                setting, searched = search(
                    self.trials, self.candidates, self.config, file, epochs=epochs, stage=stage
                )
            except BudgetError as error:
                # What was asked for, or what `auto` compares with, is there already.
                if probe is None or self.tuner.finetune.method not in (AUTO, PROBE):
                    raise
                searched |= {
                    "metric": self.tuner.metric,
                    "folds": self.folds,
                    "untried": str(error),
                }
                return self._probe(probe, searched | {"probe": self._judged(probe)}, folder)
        else:
            setting = self.candidates[0]
            searched["chosen"] = asdict(setting)
        searched |= {"metric": self.tuner.metric, "folds": self.folds}
        if probe is not None:
            searched["probe"] = self._judged(probe)
            if self.several and self._is_best(searched):
                return self._probe(probe, searched, folder)
        progress = stage(f"training {setting}")
        kept = self.trials.kept(setting, epochs) if searched["trials"] else None
        tuner = self.tuner.using(setting)
        if kept is None:
            model, result = tuner.train(
                setting.lr, setting.weight, epochs, folder,
                validate=not self.folds, test=True, progress=progress,
            )  # fmt: skip
        else:
            model, result = self._tested(*kept, folder)
        return self._chosen(tuner, model, setting, result, searched)

    def _chosen(
        self,
        tuner: Tuner,
        model: nn.Module,
        setting: Setting,
        result: dict[str, Any],
        searched: dict[str, Any],
    ) -> Selected:
        source = tuner.batches.validation
        if self.folds:
            validation = self.trials.logits(setting, searched["rungs"][-1]["epochs"])
        elif source is not None:
            validation = outputs(model.to(tuner.fabric.device), source, fabric=tuner.fabric)
        else:
            raise InputError("there are no validation images: hold some out")
        return Selected(
            tuner, model, setting.method, result, searched, validation, self._basis(searched)
        )

    def _judged(self, probe: Probe) -> dict[str, Any]:
        """Return how good the probe is, on the images that judge the trials and on those of the test."""
        record = {f"validation_{k}": v for k, v in judged(*self._of(probe)).items()}
        if "test" in probe.labels:
            rows = torch.arange(len(probe.labels["train"]))
            tested = judged(probe.logits(rows, "test"), probe.labels["test"])
            record |= {f"test_{k}": v for k, v in tested.items()}
        return record

    def _of(self, probe: Probe) -> tuple[Tensor, Tensor]:
        """Return logits and labels of images that the probe was not fitted to."""
        labels = probe.labels["train"]
        if not self.folds:
            rows = torch.arange(len(labels))
            return probe.logits(rows, "validation"), probe.labels["validation"]
        fold = stratified_folds(labels, self.folds, self.tuner.runtime.seed)
        parts = [(fold == i).nonzero().flatten() for i in range(self.folds)]
        logits = [probe.logits((fold != i).nonzero().flatten(), at=r) for i, r in enumerate(parts)]
        return torch.cat(logits), labels[torch.cat(parts)]

    def _is_best(self, searched: dict[str, Any]) -> bool:
        key, probe = f"validation_{self.tuner.metric}", searched["probe"]
        won = [t for t in searched["trials"] if _same(t, searched["chosen"])]
        best = max(won, key=lambda trial: trial["epochs"])
        rank = best[key], -best["validation_loss"]
        return (probe[key], -probe["validation_loss"]) >= rank

    def _probe(self, probe: Probe, searched: dict[str, Any], folder: RunFolder) -> Selected:
        """Return the start with the probe for its classifier: nothing is trained."""
        searched["chosen"] = {"method": PROBE, "lr": None, "weight": None}
        record = searched["probe"]
        metrics = {k: v for k, v in record.items() if not k.endswith("balanced_accuracy")}
        folder.truncate_metrics(0)
        for part in ("validation", "test"):
            figures = {k: metrics[f"{part}_{k}"] for k in _MODEL if f"{part}_{k}" in metrics}
            if figures:
                folder.log({"step": 0, "epoch": 0, "split": part, **figures})
        result = {"metrics": metrics, "seconds": round(probe.seconds, 3)}
        more = self._basis(searched)
        self.trials.keep_only(None, 0)
        return Selected(self.tuner, probe.model(), PROBE, result, searched, self._of(probe), more)

    def _tested(
        self, model: nn.Module, result: dict[str, Any], history: str, folder: RunFolder
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Return the state of the winning trial, its rows in the run's metrics, measured on the test."""
        rows = [json.loads(line) for line in history.splitlines()]
        folder.truncate_metrics(0)
        for row in rows:
            folder.log(row)
        source, epoch = self.tuner.batches.test, result["metrics"].get("selected_epoch")
        if source is not None:
            balanced = self.tuner.metric == "balanced_accuracy"
            figures = evaluate(model, source, fabric=self.tuner.fabric, balanced=balanced)
            step = next(
                (r["step"] for r in rows if r["split"] == "validation" and r["epoch"] == epoch), 0
            )
            folder.log({"step": step, "epoch": epoch, "split": "test", **figures})
            metrics = result["metrics"] | {f"test_{k}": v for k, v in figures.items()}
            result = {**result, "metrics": metrics}
        result.pop("schema", None)
        return model, result

    def _basis(self, searched: dict[str, Any]) -> str:
        """Return in a sentence what the choice rested on."""
        figure = "mean over classes" if self.tuner.metric == "balanced_accuracy" else "accuracy"
        if "untried" in searched:
            return f"no fine-tuning was tried, and the linear probe is kept: {searched['untried']}"
        if not searched["trials"]:
            return "nothing was chosen but the state that is kept, on the validation images"
        count = len(searched["trials"])
        if not self.folds:
            images = len(self.tuner.splits.validation or ())
            return f"chosen by the {figure} on {images} validation images from {count} trials"
        images, repeats = len(self.tuner.splits.train), searched.get("repeats", 1)
        often = "" if repeats == 1 else f", drawn {repeats} times"
        return (
            f"chosen by the {figure} on all {images} images that are not for the test, each judged by a "
            f"network that was trained without it ({self.folds} folds{often}), from {count} trials; the "
            "network that is kept is trained on all of them"
        )


def _same(trial: dict[str, Any], chosen: dict[str, Any]) -> bool:
    return all(trial[key] == chosen[key] for key in chosen)
