"""The trials of a search: each trained once and judged on validation images, or on every fold."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.errors import DivergenceError, InputError
from regraft.models.copying import copy_module
from regraft.train import RunFolder, finished_state, load_state, outputs
from regraft.train.checkpoint import save_state
from regraft.train.loop import Progress
from regraft.train.measure import balanced_accuracy
from regraft.train.result_folder import read_result

from .engine import Tuner
from .folds import held_out
from .settings import Setting

_CHECKPOINT = "checkpoint.safetensors"
_LOGITS = "logits.safetensors"


class Trials:
    """What trains the settings of a search, below a folder, and says how good each is.

    With `folds` of the training images (`divide`) a trial trains once for every fold, keeps its last
    state, and is judged by all images together; else the validation images judge.
    """

    def __init__(
        self,
        tuner: Tuner,
        path: Path,
        identity: dict[str, Any],
        *,
        folds: int = 0,
        several: bool = False,
    ) -> None:
        self.tuner, self.path, self.identity = tuner, path, identity
        self.folds, self.several = folds, several
        self.parts: list[tuple[str, Tensor, int]] = []

    def divide(self, partitions: Sequence[Tensor]) -> None:
        """Judge by folds: for each repeat the fold of every training image."""
        self.parts = [
            (f"repeat{r}-fold{i}", partition, i)
            for r, partition in enumerate(partitions)
            for i in range(self.folds)
        ]

    def run(self, setting: Setting, epochs: int, progress: Progress | None) -> dict[str, Any]:
        """Train what is not trained yet and return the trial's record."""
        if not self.parts:
            result = self._one(self.folder(setting, epochs), self.tuner, setting, epochs, progress)
            return _record(setting, epochs, [result])
        results = []
        for name, partition, i in self.parts:
            place = self.folder(setting, epochs) / name
            tuner = None
            if not (place / "result.json").exists():
                tuner = self.tuner.on(held_out(self.tuner.splits, partition, i))
            results.append(self._one(place, tuner, setting, epochs, progress))
            if "diverged" in results[-1]:
                break
        record = _record(setting, epochs, results)
        if "diverged" not in record:
            figures = [judged(*self._logits(setting, epochs, r)) for r in self._repeats]
            for key in figures[0]:
                record[f"validation_{key}"] = sum(f[key] for f in figures) / len(figures)
        return record

    def logits(self, setting: Setting, epochs: int) -> tuple[Tensor, Tensor]:
        """Return the logits of each image by the network that it was held out from, and the labels."""
        return self._logits(setting, epochs, self._repeats[0])

    def folder(self, setting: Setting, epochs: int) -> Path:
        """Return where a trial lies."""
        return self.path / f"{epochs}-epochs" / self._name(setting)

    def keep_only(self, setting: Setting | None, epochs: int) -> None:
        """Remove the states of all trials but of one at full length: they would fill the disk."""
        kept = None if setting is None else self.folder(setting, epochs) / _CHECKPOINT
        for file in self.path.rglob(_CHECKPOINT):
            if file != kept and (file.parent / "result.json").exists():
                file.unlink()

    def kept(self, setting: Setting, epochs: int) -> tuple[nn.Module, dict[str, Any], str] | None:
        """Return network, result and metrics of a trial whose state was kept; None without one."""
        place = self.folder(setting, epochs)
        if self.parts or not (place / _CHECKPOINT).exists():
            return None
        model = copy_module(self.tuner.start.model).to(self.tuner.fabric.device)
        model.load_state_dict(finished_state(load_state(place / _CHECKPOINT)))
        result = read_result(place) or {}
        return model, result, (place / "metrics.jsonl").read_text("utf-8")

    @property
    def _repeats(self) -> list[str]:
        return list(dict.fromkeys(name.partition("-")[0] for name, _, _ in self.parts))

    def _name(self, setting: Setting) -> str:
        name = str(setting).replace(" ", "-")
        return f"{setting.method}-{name}" if self.several else name

    def _logits(self, setting: Setting, epochs: int, repeat: str) -> tuple[Tensor, Tensor]:
        labels = self.tuner.splits.train.labels
        place, whole, rows = self.folder(setting, epochs), [], []
        for name, partition, i in self.parts:
            if name.startswith(f"{repeat}-"):
                whole.append(load_state(place / name / _LOGITS)["logits"])
                rows.append((partition == i).nonzero().flatten())
        return torch.cat(whole), labels[torch.cat(rows)]

    def _one(
        self,
        place: Path,
        tuner: Tuner | None,
        setting: Setting,
        epochs: int,
        progress: Progress | None,
    ) -> dict[str, Any]:
        with RunFolder(
            place,
            config={**self.identity, "setting": asdict(setting), "epochs": epochs},
            setting=f"search/epochs={epochs}",
            arm=self._name(setting),
            seed=self.tuner.runtime.seed,
        ) as folder:
            result: dict[str, Any] | None = folder.result
            if result is None and tuner is not None:
                try:
                    one = tuner.using(setting)
                    model, result = one.train(
                        setting.lr, setting.weight, epochs, folder, progress=progress
                    )
                    if self.parts and one.batches.validation is not None:
                        logits, _ = outputs(model, one.batches.validation, fabric=one.fabric)
                        save_state(place / _LOGITS, {"logits": logits.contiguous()})
                except DivergenceError as error:
                    result = {"metrics": {}, "seconds": None, "diverged": str(error)}
                folder.finish(result)
        if self.parts:
            with contextlib.suppress(FileNotFoundError):
                (place / _CHECKPOINT).unlink()
        if result is None:
            raise InputError(f"{place} has no result: remove the folder to start again")
        return result


def judged(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return what a setting is chosen by: accuracy and mean recall in percent, and the loss."""
    right = logits.argmax(1) == labels
    return {
        "accuracy": 100.0 * right.double().mean().item(),
        "balanced_accuracy": balanced_accuracy(right, labels),
        "loss": F.cross_entropy(logits.double(), labels).item(),
    }


def _record(setting: Setting, epochs: int, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = {**asdict(setting), "epochs": epochs}
    for result in results:
        if "diverged" in result:
            return {**record, "diverged": result["diverged"]}
    metrics = results[0]["metrics"]
    names = [k for k in metrics if k.startswith("validation_")] if len(results) == 1 else []
    return {
        **record,
        **{name: metrics[name] for name in names},
        "selected_epoch": metrics.get("selected_epoch"),
        "seconds": sum(result["seconds"] for result in results),
    }
