"""A transfer of the recipe `transfer` while it goes on: what is measured, and in which order."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft import streams
from regraft.checkpoints.model_card import header
from regraft.data import FolderLoader, ImageSet, Splits, TensorLoader
from regraft.errors import InputError
from regraft.files import write_tensors
from regraft.jobs.data import loaders
from regraft.jobs.record import network
from regraft.jobs.traced import traced
from regraft.jobs.train import TrainJob, facts
from regraft.symmetry.merge.connectivity import Kept, measure, plane
from regraft.symmetry.merge.repair import reset_batch_norm_
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.transfer.gradients import Gradients
from regraft.symmetry.transfer.mode_connectivity import connect
from regraft.symmetry.transfer.trajectory import Trajectory
from regraft.symmetry.transfer.transfer import Transferred, transfer
from regraft.tickets import stored_bytes
from regraft.train import Batches, RunFolder, fit, load_state, peak_bytes, reset_peak, save_state
from regraft.train.loop import Progress

from .connection import barriers, chosen, plane_rows
from .job import TransferJob

State = dict[str, Tensor]


@dataclass(eq=False)
class Transferring:
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
                self._loaders(self.job.then),
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
        steps = self._steps(self.transfer.by, source, target, trained, spec)
        for i, found in enumerate(steps, start=1):
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
            found_barriers, more = self._paths(start, source, trained, spec)
            metrics |= found_barriers
            rows += more
        if self.transfer.plane_points and self.transfer.by in ("gmt", "fgmt"):
            rows += self._plane(start, source, target, trained, spec)
        return start.weights, metrics, rows

    def _loaders(self, job: TrainJob) -> Batches:
        """Return the batches of a training here."""
        return loaders(self.splits, job.data, job.optim, seed=job.runtime.seed, device=self.device)

    def _steps(
        self, by: Any, source: Trajectory, target: State, trained: State, spec: PermutationSpec
    ) -> Any:
        job = self.job
        if by == "scratch":
            raise InputError("by='scratch' carries nothing over")
        count = self.transfer.steps
        if self.transfer.trajectory == "recorded":
            line = source.thinned(min(count, len(source)))
        else:
            line = source.straight(count, spacing=self.transfer.spacing)
        # Batches of the source's training, in an order that no training here has.
        own = replace(job.source.plain, runtime=replace(job.runtime, seed=100 * job.runtime.seed))
        batches = self._loaders(own).train
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
        return barriers(found)

    def _plane(
        self,
        at: Transferred,
        source: Trajectory,
        target: State,
        trained: State,
        spec: PermutationSpec,
    ) -> list[dict[str, Any]]:
        """Measure the plane through the target's own solution, the oracle's network and this one."""
        steps = self._steps("oracle", source, target, trained, spec)
        oracle = chosen(steps, self._chosen_by, self.transfer.start)
        found = plane(
            self.model,
            [trained, oracle, at.weights],
            [self.few["test"]],
            points=self.transfer.plane_points,
            statistics=self.statistics,
        )
        return plane_rows(found)

    def _chosen_by(self, state: State) -> float:
        return self._score(state, {"validation": self.few["validation"]})["validation_accuracy"]

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
            metadata = header(about)
            write_tensors(self.folder.path / "model.safetensors", plain, metadata)


_PARTS = ("validation", "test")
_ACCURACIES = ("validation_accuracy", "test_accuracy")
