"""One run of a recipe that carries a recorded training over, and trains on from there.

References:
    Chijiwa 2024, Transferring Learning Trajectories of Neural Networks (arXiv 2305.14122).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.jobs.base import Job
from regraft.jobs.data import fingerprint
from regraft.jobs.record import RecordJob, images_of, network
from regraft.jobs.traced import traced
from regraft.jobs.train import TrainJob, facts
from regraft.tickets import stored_bytes
from regraft.train import RunFolder, make_fabric, peak_bytes, reset_peak
from regraft.train.loop import Progress

from .config import TransferConfig
from .engine import TransferResult, transfer
from .images import Images
from .networks import Networks
from .steps import Steps

_LINES = {"trained target": "target", "permuted source": "source", "between": "between"}
"""Lines to the transferred network, and the one between both solutions, by their names in metrics."""


def pair_of(seed: int) -> tuple[int, int]:
    """Return the seeds of source and target: 101 and 102, 201 and 202, ..., as the paper's are."""
    return 100 * seed + 1, 100 * seed + 2


@dataclass(frozen=True, kw_only=True)
class TransferJob(Job):
    """Everything that determines one transfer between two recorded trainings.

    Attributes:
        setting: What is compared here.
        arm: The method's name in tables.
        control: The arm this one is held against.
        source: The training that is carried over.
        target: The same training of the network it is carried to: its initialisation is where
            transfers start, its end what the oracle and the paths need.
        transfer: What is done.
    """

    source: RecordJob
    target: RecordJob
    transfer: TransferConfig = field(default_factory=TransferConfig)

    @property
    def then(self) -> TrainJob:
        """The training afterwards, as data and files know it."""
        return replace(
            self.target.plain,
            setting=self.setting,
            arm=self.arm,
            optim=self.transfer.then or self.target.optim,
            runtime=self.runtime,
        )

    def with_seed(self, seed: int) -> TransferJob:
        """Return the same transfer at another seed, between networks of the pair that belongs to it."""
        source, target = pair_of(seed)
        return replace(
            super().with_seed(seed),
            source=self.source.with_seed(source),
            target=self.target.with_seed(target),
        )

    def check(self) -> None:
        """Refuse numbers out of their ranges, and two trainings that have no common architecture.

        Raises:
            InputError: The first of them.
        """
        super().check()
        self.transfer.check()
        for name in ("model", "data"):
            if getattr(self.source, name) != getattr(self.target, name):
                raise InputError(
                    f"source and target differ in {name}: a training is carried over between networks "
                    "of one architecture on one data set"
                )
        if self.transfer.match == "scratch" and self.transfer.then is None:
            raise InputError("match='scratch' only trains: give then=OptimConfig(...)")

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Transfer, measure and train on; return what was measured."""
        reset_peak()
        networks = self._networks(folder, root)
        result = transfer(networks, self.transfer, self.runtime, folder, progress)
        steps = result.steps.get(self.transfer.match)
        start = result.untrained if steps is None else steps.start(self.transfer.start).weights
        trained = result.trained_on.get(self.transfer.match)
        if trained is None:
            folder.truncate_metrics(0)
            networks.model.load_state_dict(start)
        # A training begins with empty metrics, so that what was found before it is logged after it.
        for row in _rows(result, steps):
            folder.log(row)
        if folder.writes:
            networks.save(folder.path / "transferred.safetensors", start)
            networks.save(folder.path / "model.safetensors", networks.model.state_dict())
        metrics = _metrics(result, steps, self.transfer)
        seconds = metrics["transfer_seconds"]
        after = {} if trained is None else trained["result"]
        if trained is not None:
            metrics |= after["metrics"] | {"training_seconds": after["seconds"]}
        return {
            "metrics": metrics,
            "seconds": round(seconds + after.get("seconds", 0.0), 3),
            "trainable_parameters": after.get("trainable_parameters", 0),
            "stored_bytes": stored_bytes(networks.model),
            "peak_memory_bytes": peak_bytes(),
        }

    def _networks(self, folder: RunFolder, root: Path) -> Networks:
        """Return the networks that both trainings left."""
        splits = images_of(self.target.data)
        folder.pin("data", fingerprint(splits))
        device = make_fabric(self.runtime).device
        model = network(self.target.model, splits, self.runtime.seed).to(device).eval()
        spec, seconds = traced(
            model,
            self.target.model,
            classes=splits.num_classes,
            channels=splits.channels,
            side=splits.image_size,
        )
        how, source, target = (
            self.transfer,
            self.source.trajectory(root),
            self.target.trajectory(root),
        )
        if how.trajectory == "straight":
            source = source.straight(how.trajectory_steps or 10, spacing=how.spacing)
        elif how.trajectory_steps is not None:
            source = source.thinned(min(how.trajectory_steps, len(source)))
        return Networks(
            model=model,
            images=Images(
                splits, how, device=device, seed=self.runtime.seed, augment=self.target.data.augment
            ),
            trajectory=source,
            target=target.state(0),
            trained=target.state(-1),
            spec=spec,
            tracing_seconds=seconds,
            about={**facts(self.then, splits), "method": self.arm},
        )


def _metrics(
    result: TransferResult, steps: Steps | None, config: TransferConfig
) -> dict[str, float]:
    """Return what is told of a transfer: scores before any training, seconds, barriers."""
    start = result.scores["target, untrained"] if steps is None else steps.scores[config.start]
    metrics = {
        f"untrained_{name}": start[name] for name in ("validation_accuracy", "test_accuracy")
    }
    if steps is None:
        return {**metrics, "transfer_seconds": 0.0}
    along = [row["test_accuracy"] for row in steps.rows]
    costs = steps.last.costs
    metrics |= {
        "best_step": float(steps.best_at),
        "untrained_best_accuracy": steps.scores["best"]["test_accuracy"],
        "untrained_final_accuracy": steps.scores["final"]["test_accuracy"],
        "along_accuracy": sum(along) / len(along),
        "transfer_seconds": round(steps.seconds, 3),
        "gradient_seconds": round(costs.gradients, 3),
        "contraction_seconds": round(costs.contraction, 3),
        "assignment_seconds": round(costs.assignment, 3),
        "tracing_seconds": round(steps.tracing, 3),
        "choosing_seconds": round(steps.choosing, 3),
        "gradients": float(costs.count),
    }
    for name, short in _LINES.items():
        if name in result.paths:
            metrics[f"{short}_barrier"] = result.paths[name]["loss_barrier"]
            metrics[f"{short}_accuracy_barrier"] = result.paths[name]["accuracy_barrier"]
    return metrics


def _rows(result: TransferResult, steps: Steps | None) -> list[dict[str, Any]]:
    """Return rows with the scores along the steps, on the lines, and over the plane."""
    rows = [_step_row(0, result.first)]
    rows += [_step_row(i, row) for i, row in enumerate(steps.rows if steps else (), start=1)]
    for name, short in _LINES.items():
        curve = result.paths.get(name, {"at": (), "scores": ()})
        for i, (x, score) in enumerate(zip(curve["at"], curve["scores"], strict=True)):
            row = {"step": i, "epoch": 0, "split": f"path_{short}", "at": x}
            rows.append({**row, "loss": score["loss"], "accuracy": score["accuracy"]})
    plane = result.plane
    if plane is None:
        return rows
    for i, y in enumerate(plane["y"]):
        for j, x in enumerate(plane["x"]):
            row = {"step": i * len(plane["x"]) + j, "epoch": 0, "split": "plane", "x": x, "y": y}
            rows.append({**row, "loss": plane["loss"][i][j], "accuracy": plane["accuracy"][i][j]})
    for i, (x, y) in enumerate(plane["points"]):
        rows.append({"step": i, "epoch": 0, "split": "plane_network", "x": x, "y": y})
    return rows


def _step_row(i: int, measured: dict[str, Any]) -> dict[str, Any]:
    row = {"step": i, "epoch": 0, "split": "transfer", "accuracy": measured["test_accuracy"]}
    row |= {"loss": measured["test_loss"], "validation_accuracy": measured["validation_accuracy"]}
    cosine = measured.get("cosine")
    return row if cosine is None else {**row, "cosine": cosine}
