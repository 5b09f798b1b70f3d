"""One run that merges two trained networks, or does what a merge is held against, and measures it.

References:
    Yamada et al., "Revisiting permutation symmetry for merging models between different datasets",
    arXiv 2306.05641.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.config import OptimConfig
from regraft.errors import InputError
from regraft.files import write_tensors
from regraft.jobs.base import Job
from regraft.jobs.condense.job import CondenseJob
from regraft.jobs.data import fingerprint
from regraft.jobs.traced import traced
from regraft.jobs.train import TrainJob, facts
from regraft.models import build
from regraft.symmetry.match.activations import Activations
from regraft.symmetry.match.match import match
from regraft.symmetry.match.straight_through import StraightThrough, StraightThroughConfig
from regraft.symmetry.merge.connectivity import Measured, buffer_names, interpolation, measure
from regraft.symmetry.merge.heads import Ensemble
from regraft.symmetry.merge.merge import merge
from regraft.symmetry.merge.repair import RepairMode, repair
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.tickets import stored_bytes
from regraft.train import Batches, RunFolder, fit, lr_factor, make_fabric, peak_bytes, reset_peak
from regraft.train.loop import Progress

from .sets import Sets, Surrogate, parent_state

Method = Literal[
    "parent_a",
    "parent_b",
    "average",
    "weights",
    "activations",
    "straight_through",
    "ensemble",
    "scratch",
]

State = Mapping[str, Tensor]

_OTHER = 1000
"""Added to a seed for network B, which must not start where A does."""

_CHUNK = 10
"""Steps of straight-through matching between two looks at the clock."""


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """What is done with two trained networks.

    `average` merges them as they are; `weights`, `activations` and `straight_through` align B first
    by weight matching, by activations or on labelled data. Controls are either parent by itself,
    the `ensemble` of their logits, and a network trained from `scratch` on the surrogate.
    """

    method: Method = "average"
    surrogate: Surrogate = "full"
    """Data of `straight_through` and `scratch`: the union of the training sets, or a few images."""
    per_class: int = 10
    """Images of each class and set in a surrogate that is not full."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """SGD of `straight_through` or `scratch`."""
    sweeps: int = 100
    """Sweeps of each matching of `straight_through`, at most; the next goes on from where it ended."""
    repair: RepairMode = "none"
    """What is done to the statistics of merged networks."""
    statistics: int = 5000
    """Training images of each set that statistics and activations come from; labels are not used."""
    points: int = 25
    """Networks measured along the path."""
    path_images: int | None = None
    """Test images of each set that the path is measured on; all by default."""


@dataclass(frozen=True, kw_only=True)
class MergeJob(Job):
    """Everything that determines one merge.

    Attributes:
        setting: What is compared here.
        arm: The method's name in tables.
        control: The arm this one is held against.
        a: The training of the network that stays.
        b: The training of the network that is permuted, with another seed.
        merge: What is done.
        condensed: Of the surrogate `condensed`, the condensation of each data set.
    """

    a: TrainJob
    b: TrainJob
    merge: MergeConfig = field(default_factory=MergeConfig)
    condensed: tuple[CondenseJob, ...] = ()

    def with_seed(self, seed: int) -> MergeJob:
        """Return the same merge at another seed; B gets one that no other network A has."""
        return replace(super().with_seed(seed), b=self.b.with_seed(seed + _OTHER))

    def check(self) -> None:
        """See `Job.check`."""
        super().check()
        if self.a.model != self.b.model:
            raise InputError(
                f"a is a {self.a.model.name} and b a {self.b.model.name}, or of other options: "
                "networks are merged if their architecture is the same"
            )

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Merge and measure; see `Job.work`."""
        fabric = make_fabric(self.runtime)
        sets = Sets.of((self.a.data, self.b.data), fabric.device, self.runtime.seed)
        for i, splits in enumerate(sets.splits, start=1):
            folder.pin(f"data{i}", fingerprint(splits))
        states = [
            {k: v.to(fabric.device) for k, v in parent_state(job, root).items()}
            for job in (self.a, self.b)
        ]
        return _Merging(self, sets, states, folder, fabric, root, progress).result()


@dataclass(eq=False)
class _Merging:
    """A merge under way."""

    job: MergeJob
    sets: Sets
    states: list[dict[str, Tensor]]
    folder: RunFolder
    fabric: Any
    root: Path
    progress: Progress | None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        first = self.sets.splits[0]
        self.shape: Any = {
            "num_classes": first.num_classes,
            "channels": first.channels,
            "image_size": first.image_size,
        }
        self.merge = self.job.merge
        self.model = self._network()

    def result(self) -> dict[str, Any]:
        """Do what was asked and return what was measured."""
        reset_peak()
        if self.merge.method not in ("straight_through", "scratch"):  # which say themselves
            self.folder.truncate_metrics(0)
        method = self.merge.method
        if method in ("average", "weights", "activations", "straight_through"):
            aligned = self._aligned()
            network, extra = self._merged(aligned), self._path(aligned)
        else:
            network, extra = self._control(), {}
        metrics: dict[str, float] = {**self._scores(network), **extra}
        if self.merge.method in ("straight_through", "scratch"):
            metrics["surrogate_images"] = len(self._surrogate())
        return {
            "metrics": metrics,
            "seconds": round(self.seconds, 3),
            "trainable_parameters": (
                sum(p.numel() for p in network.parameters()) if method == "scratch" else 0
            ),
            "stored_bytes": stored_bytes(network),
            "peak_memory_bytes": peak_bytes(),
        }

    def _network(self) -> nn.Module:
        torch.manual_seed(self.job.runtime.seed)
        return build(self.job.a.model, **self.shape).to(self.sets.device).eval()

    def _surrogate(self) -> Any:
        files = [job.file(self.root) for job in self.job.condensed]
        return self.sets.surrogate(self.merge.surrogate, self.merge.per_class, files)

    def _batches(self) -> Any:
        # Images that were condensed or chosen are taken as they are.
        augment = self.job.a.data.augment if self.merge.surrogate == "full" else "none"
        size = self.merge.optim.batch_size
        return self.sets.loader(self._surrogate(), batch_size=size, shuffle=True, augment=augment)

    def _statistics(self) -> Any:
        return self.sets.loader(self.sets.union(limit=self.merge.statistics))

    def _aligned(self) -> State:
        """Return the state dict of B, permuted."""
        a, b = self.states
        if self.merge.method == "average":
            return b
        spec = self._spec()
        seed = self.job.runtime.seed
        if self.merge.method == "straight_through":
            return spec.apply(b, self._straight_through(spec))
        signal: Any = "weights"
        if self.merge.method == "activations":
            signal = Activations(self.model, self._statistics())
        began = time.monotonic()
        found = match(spec, a, b, by=signal, seed=seed, workers=self.job.runtime.threads)
        self.seconds = time.monotonic() - began
        return spec.apply(b, found.permutation)

    def _spec(self) -> PermutationSpec:
        size = {"channels": self.shape["channels"], "side": self.shape["image_size"]}
        classes = self.shape["num_classes"]
        return traced(self.model, self.job.a.model, classes=classes, **size)[0]

    def _straight_through(self, spec: PermutationSpec) -> Any:
        optim, batches = self.merge.optim, self._batches()
        steps = len(batches) * optim.epochs
        # A surrogate stands for all data, so candidates are compared on it; with all data at hand
        # those that were held out are the better judge.
        score = None
        if self.merge.surrogate == "full" and self.sets.validated:
            score = self.sets.loader(self.sets.union("validation"))
        config = StraightThroughConfig(
            steps=steps,
            lr=optim.lr,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            max_sweeps=self.merge.sweeps,
            score_every=min(max(len(batches), 50), steps),
            seed=self.job.runtime.seed,
            workers=self.job.runtime.threads or 1,
        )
        schedule = lr_factor(optim, len(batches))
        a, b = self.states
        run = StraightThrough(
            spec, self.model, a, b, batches, config, score=score, schedule=schedule
        )
        state = self.folder.load_checkpoint()
        if state is None:
            self.folder.truncate_metrics(0)
        else:
            self.folder.truncate_metrics(state["metrics_bytes"])
            self.seconds = state["seconds"]
            run.load_state_dict(state["straight_through"])
        clock = saved = time.monotonic()

        def log(step: int, steps: int, row: dict[str, float]) -> None:
            epoch = (step - 1) // len(batches)
            newest = {"step": step, "epoch": epoch, "split": "match", **row}
            if "score" in row:
                self.folder.log(newest)
            if self.progress is not None:
                self.progress(step, steps, newest)

        while run.at.step < steps:
            run.run(until=run.at.step + _CHUNK, progress=log)
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            due = now - saved >= self.job.runtime.checkpoint_seconds
            if self.folder.writes and (due or run.at.step >= steps):
                self.folder.save_checkpoint(
                    {
                        "straight_through": run.state_dict(),
                        "seconds": self.seconds,
                        "metrics_bytes": self.folder.sync_metrics(),
                    }
                )
                saved = time.monotonic()
        return run.at.best

    def _merged(self, aligned: State) -> nn.Module:
        """Return the network in the middle, its weights stored in the folder."""
        parents = [self.states[0], aligned]
        state = merge(parents, buffers=buffer_names(self.model))
        if self.merge.repair != "none":
            batches, mode = self._statistics(), self.merge.repair
            state, _ = repair(self.model, state, parents, batches, mode=mode)
        network = self._network()
        network.load_state_dict(state)
        if self.folder.writes:
            tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
            # Of the data sets it says the first: both share what a network has to be told.
            about = {**facts(self.job.a, self.sets.splits[0]), "method": self.job.arm}
            about["data"] = "+".join(s.name for s in self.sets.splits)
            header = {"regraft.model": json.dumps(about)}
            write_tensors(self.folder.path / "model.safetensors", tensors, header)
        return network

    def _path(self, aligned: State) -> dict[str, float]:
        """Measure the networks between A and aligned B, log them, and return what sums them up."""
        curve = interpolation(
            self.model,
            self.states[0],
            aligned,
            self.sets.each("test", self.merge.path_images),
            points=self.merge.points,
            statistics=None if self.merge.repair == "none" else self._statistics(),
            repair=self.merge.repair,
        )
        for i, (at, score) in enumerate(zip(curve.at, curve.scores, strict=True)):
            row = {"step": i, "epoch": 0, "split": "path", "at": at}
            row |= {"loss": score.loss, "accuracy": score.accuracy}
            self.folder.log({**row, **_by_set("accuracy", score.accuracies)})
        accuracies = [score.accuracy for score in curve.scores]
        return {
            "path_accuracy": sum(accuracies) / len(accuracies),
            "loss_barrier": curve.loss_barrier,
            "accuracy_barrier": curve.accuracy_barrier,
        }

    def _control(self) -> nn.Module:
        method = self.merge.method
        if method == "scratch":
            return self._scratch()
        if method == "ensemble":
            return Ensemble.of(self.model, self.states)
        network = self._network()
        network.load_state_dict(self.states[0 if method == "parent_a" else 1])
        return network

    def _scratch(self) -> nn.Module:
        network = self._network()
        found = fit(
            network,
            Batches(self._batches()),
            optim=self.merge.optim,
            runtime=self.job.runtime,
            folder=self.folder,
            progress=self.progress,
            fabric=self.fabric,
        )
        self.seconds = found["seconds"]
        return network.eval()

    def _scores(self, network: nn.Module) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for split in ("validation", "test"):
            if split == "test" or self.sets.validated:
                found: Measured = measure(network, self.sets.each(split))
                metrics[f"{split}_accuracy"] = found.accuracy
                metrics[f"{split}_loss"] = found.loss
                metrics |= _by_set(f"{split}_accuracy", found.accuracies)
        return metrics


def _by_set(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the values of each data set by name; of a single one there is nothing to add."""
    return {f"{name}_{c}": v for c, v in zip("ab", values, strict=False)} if len(values) > 1 else {}
