"""One run that carries a recorded training over to another initialisation, and trains on from there.

References:
    Chijiwa 2024, Transferring Learning Trajectories of Neural Networks (arXiv 2305.14122).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft import streams
from regraft.config import RuntimeConfig, check, to_dict
from regraft.data import FolderLoader, ImageSet, Splits, TensorLoader
from regraft.errors import InputError
from regraft.files import write_tensors
from regraft.symmetry.connectivity import Kept, measure
from regraft.symmetry.gradients import Gradients
from regraft.symmetry.mode_connectivity import connect
from regraft.symmetry.repair import reset_batch_norm_
from regraft.symmetry.spec import PermutationSpec
from regraft.symmetry.trajectory import Trajectory
from regraft.symmetry.transfer import Transferred, transfer
from regraft.tickets import stored_bytes
from regraft.train import (
    RunFolder,
    fit,
    load_state,
    make_fabric,
    peak_bytes,
    reset_peak,
    save_state,
)
from regraft.train.loop import Progress

from .job import Job, facts, fingerprint, loaders, runtime_identity
from .recorded_job import RecordedJob, images_of, network
from .runnable import folder_of
from .traced import traced
from .transfer_config import TransferConfig

State = dict[str, Tensor]


def pair_of(seed: int) -> tuple[int, int]:
    """Return the seeds of source and target: 101 and 102, 201 and 202, ..., as the paper's are."""
    return 100 * seed + 1, 100 * seed + 2


@dataclass(frozen=True, kw_only=True)
class TransferJob:
    """Everything that determines one transfer.

    Attributes:
        setting: What is compared here.
        arm: The method's name in tables.
        control: The arm this one is held against.
        source: The training that is carried over.
        target: The same training of the network it is carried to: its initialisation is where
            transfers start, its end what the oracle and the paths need.
        transfer: What is done.
    """

    setting: str
    arm: str
    control: str | None = None
    source: RecordedJob
    target: RecordedJob
    transfer: TransferConfig = field(default_factory=TransferConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    @property
    def sources(self) -> tuple[RecordedJob, RecordedJob]:
        """Both trainings."""
        return (self.source, self.target)

    @property
    def then(self) -> Job:
        """The training afterwards, as data and files know it."""
        return replace(
            self.target.plain,
            setting=self.setting,
            arm=self.arm,
            optim=self.transfer.then or self.target.optim,
            runtime=self.runtime,
        )

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines the numbers."""
        return {
            "source": self.source.config(),
            "target": self.target.config(),
            "transfer": to_dict(self.transfer),
            "runtime": runtime_identity(self.runtime),
        }

    def folder(self, root: Path) -> Path:
        """Return the run's own folder below `root`."""
        return folder_of(self, root)

    def with_seed(self, seed: int) -> TransferJob:
        """Return the same transfer at another seed, between networks of the pair that belongs to it."""
        source, target = pair_of(seed)
        return replace(
            self,
            source=self.source.with_seed(source),
            target=self.target.with_seed(target),
            runtime=replace(self.runtime, seed=seed),
        )

    def with_data_root(self, root: str) -> TransferJob:
        """Return the same transfer with the data sets below `root`."""
        return replace(
            self, source=self.source.with_data_root(root), target=self.target.with_data_root(root)
        )

    def run(self, root: Path, *, progress: Progress | None = None) -> dict[str, Any]:
        """Transfer, measure and train on, or go on, or return the result of a finished run.

        Raises:
            RegraftError: Whatever keeps the run from its end, in one sentence.
        """
        self._check()
        identity: dict[str, Any] = {"config": self.config(), "setting": self.setting}
        identity |= {"arm": self.arm, "control": self.control, "seed": self.runtime.seed}
        with RunFolder(self.folder(root), **identity) as folder:
            if folder.result is not None:
                return folder.result
            fabric = make_fabric(self.runtime)
            splits = images_of(self.target.data)
            folder.pin("data", fingerprint(splits))
            result = _Transferring(self, splits, folder, fabric, root, progress).result()
            folder.finish(result)
            return {"schema": 1, **result}

    def _check(self) -> None:
        check(self.target.data, self.target.model, self.then.optim, self.runtime)
        for name in ("model", "data"):
            if getattr(self.source, name) != getattr(self.target, name):
                raise InputError(
                    f"source and target differ in {name}: a training is carried over between networks "
                    "of one architecture on one data set"
                )
        if self.transfer.by == "scratch" and self.transfer.then is None:
            raise InputError("by='scratch' only trains: give then=OptimConfig(...)")


@dataclass(eq=False)
class _Transferring:
    """A transfer under way."""

    job: TransferJob
    splits: Splits
    folder: RunFolder
    fabric: Any
    root: Path
    progress: Progress | None

    def __post_init__(self) -> None:
        self.transfer = self.job.transfer
        self.device: torch.device = self.fabric.device
        self.model = network(self.job.target.model, self.splits, self.job.runtime.seed)
        self.model.to(self.device).eval()
        few = self.transfer.curve_images
        self.few = {s: Kept(self._plain(getattr(self.splits, s), few)) for s in _PARTS}
        self.all = {s: self._plain(getattr(self.splits, s)) for s in _PARTS}
        self.statistics = Kept(self._plain(self.splits.train, self.transfer.statistics))

    def result(self) -> dict[str, Any]:
        """Do what was asked and return what was measured."""
        found = self._before()
        metrics, rows = dict(found["metrics"]), found["rows"]
        seconds = metrics["transfer_seconds"]
        self.model.load_state_dict(found["start"])
        trainable = 0
        if self.transfer.then is None:
            self.folder.truncate_metrics(0)
        else:
            then = fit(
                self.model,
                loaders(self.splits, self.job.then, self.device),
                optim=self.transfer.then,
                runtime=self.job.runtime,
                folder=self.folder,
                progress=self.progress,
                fabric=self.fabric,
            )
            metrics |= then["metrics"]
            metrics["training_seconds"] = then["seconds"]
            seconds, trainable = seconds + then["seconds"], then["trainable_parameters"]
        # The loop begins with empty metrics, so that what was found before it is logged after it.
        for row in rows:
            self.folder.log(row)
        self._store()
        return {
            "metrics": metrics,
            "seconds": round(seconds, 3),
            "trainable_parameters": trainable,
            "stored_bytes": stored_bytes(self.model),
            "peak_memory_bytes": peak_bytes(),
        }

    def _before(self) -> dict[str, Any]:
        """Return where training starts, and what was measured up to there, found once and kept."""
        file = self.folder.path / "transferred.safetensors"
        if file.exists():
            return load_state(file)
        reset_peak()
        target = self._to_device(self.job.target.trajectory(self.root).state(0))
        untrained = self._with_statistics(target)
        rows = [self._row(0, self._score(untrained, self.few))]
        if self.transfer.by == "scratch":
            start = untrained
            metrics = self._untrained(start)
        else:
            start, metrics, more = self._transferred(target)
            rows += more
        found = {"start": start, "metrics": metrics, "rows": rows}
        if self.folder.writes:
            save_state(file, found)
        return found

    def _transferred(self, target: State) -> tuple[State, dict[str, float], list[dict[str, Any]]]:
        """Transfer, choose a step, and measure it, the last one and the lines that end there."""
        source = self.job.source.trajectory(self.root)
        trained = self._to_device(self.job.target.trajectory(self.root).state(-1))
        spec, tracing = self._spec()
        rows: list[dict[str, Any]] = []
        metrics: dict[str, float] = {}
        choosing, highest = 0.0, -1.0
        best = last = None
        for i, found in enumerate(self._steps(source, target, trained, spec), start=1):
            began = time.perf_counter()
            validation = self._score(found.weights, {"validation": self.few["validation"]})
            choosing += time.perf_counter() - began
            scores = validation | self._score(found.weights, {"test": self.few["test"]})
            rows.append(self._row(i, scores, found))
            last = found
            if scores["validation_accuracy"] > highest:
                highest, best = scores["validation_accuracy"], found
                metrics["best_step"] = float(i)
        if best is None or last is None:
            raise InputError(f"the trajectory of {self.job.source.setting} has no steps")
        start = best if self.transfer.start == "best" else last
        costs = last.costs
        tracing = 0.0 if self.transfer.by == "naive" else tracing
        metrics |= self._untrained(start.weights)
        ends = {"best": best, "final": last}
        for which, at in ends.items():
            score = self._score(at.weights, {"test": self.all["test"]})
            metrics[f"untrained_{which}_accuracy"] = score["test_accuracy"]
        metrics["along_accuracy"] = sum(row["accuracy"] for row in rows) / len(rows)
        metrics |= {
            "transfer_seconds": round(costs.total + tracing + choosing, 3),
            "gradient_seconds": round(costs.gradients, 3),
            "contraction_seconds": round(costs.contraction, 3),
            "assignment_seconds": round(costs.assignment, 3),
            "tracing_seconds": round(tracing, 3),
            "choosing_seconds": round(choosing, 3),
            "gradients": float(costs.count),
        }
        if self.transfer.points:
            barriers, more = self._paths(start, source, trained, spec)
            metrics |= barriers
            rows += more
        return start.weights, metrics, rows

    def _steps(
        self, source: Trajectory, target: State, trained: State, spec: PermutationSpec
    ) -> Any:
        job, by = self.job, self.transfer.by
        if by == "scratch":
            raise InputError("by='scratch' carries nothing over")
        count = self.transfer.steps
        if self.transfer.trajectory == "recorded":
            line = source.thinned(min(count, len(source)))
        else:
            line = source.straight(count, spacing=self.transfer.spacing)
        # Batches of the source's training, in an order that no training here has.
        own = replace(job.source.plain, runtime=replace(job.runtime, seed=100 * job.runtime.seed))
        batches = loaders(self.splits, own, self.device).train
        return transfer(
            line,
            target,
            spec,
            Gradients(self.model, batches, count=self.transfer.gradient_batches),
            by=by,
            trained=trained,
            statistics=self.statistics,
            seed=job.runtime.seed,
            workers=job.runtime.threads,
        )

    def _paths(
        self, at: Transferred, source: Trajectory, trained: State, spec: PermutationSpec
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Measure the lines from the target's own solution and the permuted source's."""
        found = connect(
            self.model,
            at.weights,
            self._to_device(source.state(-1)),
            spec,
            at.permutation,
            [self.few["test"]],
            trained=trained,
            statistics=self.statistics,
            points=self.transfer.points,
        )
        metrics, rows = {}, []
        for name, short in _LINES.items():
            curve = found.curves[name]
            metrics[f"{short}_barrier"] = curve.loss_barrier
            metrics[f"{short}_accuracy_barrier"] = curve.accuracy_barrier
            for i, (x, score) in enumerate(zip(curve.at, curve.scores, strict=True)):
                row = {"step": i, "epoch": 0, "split": f"path_{short}", "at": x}
                rows.append({**row, "loss": score.loss, "accuracy": score.accuracy})
        return metrics, rows

    def _untrained(self, state: State) -> dict[str, float]:
        """Return what the point that training starts from scores on all images."""
        found = self._score(state, self.all)
        metrics = {f"untrained_{name}": found[name] for name in _ACCURACIES}
        return {**metrics, "transfer_seconds": 0.0}

    def _row(
        self, i: int, scores: dict[str, float], found: Transferred | None = None
    ) -> dict[str, Any]:
        row = {"step": i, "epoch": 0, "split": "transfer", "accuracy": scores["test_accuracy"]}
        row |= {"loss": scores["test_loss"], "validation_accuracy": scores["validation_accuracy"]}
        if found is not None and found.cosine is not None:
            row["cosine"] = found.cosine
        return row

    def _score(self, state: State, parts: dict[str, Any]) -> dict[str, float]:
        self.model.load_state_dict(state)
        found: dict[str, float] = {}
        for name, source in parts.items():
            scores = measure(self.model, [source])
            found |= {f"{name}_accuracy": scores.accuracy, f"{name}_loss": scores.loss}
        return found

    def _spec(self) -> tuple[PermutationSpec, float]:
        return traced(
            self.model,
            self.job.target.model,
            classes=self.splits.num_classes,
            channels=self.splits.channels,
            side=self.splits.image_size,
        )

    def _with_statistics(self, state: State) -> State:
        self.model.load_state_dict(state)
        reset_batch_norm_(self.model, self.statistics)
        return {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def _to_device(self, state: Any) -> State:
        return {k: v.to(self.device) for k, v in state.items()}

    def _plain(self, images: Any, limit: int | None = None) -> TensorLoader | FolderLoader:
        """Return batches as they are, of at most `limit` images drawn from a set."""
        if limit is not None and limit < len(images):
            order = streams.permutation(0, "transfer/some", 0, len(images))
            images = images.subset(order[:limit].sort().values)
        kind: Any = TensorLoader if isinstance(images, ImageSet) else FolderLoader
        return kind(
            images,
            batch_size=500 if kind is TensorLoader else self.job.target.optim.batch_size,
            mean=self.splits.mean,
            std=self.splits.std,
            shuffle=False,
            augment="none",
            seed=self.job.runtime.seed,
            device=self.device,
        )

    def _store(self) -> None:
        if self.folder.writes:
            tensors = self.model.state_dict().items()
            plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors}
            about = {**facts(self.job.then, self.splits), "method": self.job.arm}
            header = {"regraft.model": json.dumps(about)}
            write_tensors(self.folder.path / "model.safetensors", plain, header)


_PARTS = ("validation", "test")
_ACCURACIES = ("validation_accuracy", "test_accuracy")
_LINES = {"trained target": "target", "permuted source": "source", "between": "between"}
"""Lines to the transferred network, and the one between both solutions, by their names in metrics."""
