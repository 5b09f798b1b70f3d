"""One run from its config to its result: what the recipes and `regraft ticket find` share."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regraft.checkpoints.write import write_model
from regraft.config import DataConfig, ModelConfig, OptimConfig, TicketConfig, to_dict
from regraft.data import Graph, Splits
from regraft.errors import InputError
from regraft.models import Transductive, build
from regraft.tickets import (
    bake,
    coded_bytes,
    entropy_bits,
    load_ticket,
    masks,
    named_masks,
    prepare,
    quantise,
    save_quantised,
    save_ticket,
    shuffled,
    stored_bytes,
)
from regraft.train import (
    Batches,
    RunFolder,
    evaluate,
    finished_state,
    fit,
    load_state,
    make_fabric,
    peak_bytes,
    reset_peak,
)
from regraft.train.loop import Progress

from .base import Job
from .data import Data, load_once, loaders
from .predict.used_images import write_used

ROUNDED = ("quantised", "quantised_coded")
"""Methods that round the weights of another run's network and train nothing."""


@dataclass(frozen=True, kw_only=True)
class TrainJob(Job):
    """One training, search or control of a network.

    Besides the run folder's own files it leaves `model.ticket` (a search) or `model.safetensors`
    (trained weights) there.

    Attributes:
        source: The finished run that a control starts from: for `shuffled_mask` the search whose
            masks are shuffled, for those of `ROUNDED` the trained
            network.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    ticket: TicketConfig = field(default_factory=TicketConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    source: TrainJob | None = None

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Train or search, or measure a control that trains nothing; see `Job.work`."""
        fabric = make_fabric(self.runtime)
        splits = load_once(self.data)
        if folder.writes and isinstance(splits, Splits):
            write_used(folder.path, [splits])
        batches = loaders(
            splits, self.data, self.optim, seed=self.runtime.seed, device=fabric.device
        )
        torch.manual_seed(self.runtime.seed)
        model = build(self.model, num_classes=splits.num_classes, **_input(splits))
        steps = len(batches.train) * self.optim.epochs
        # What is rounded has the form of the training that it comes from.
        rounds = self.ticket.method in ROUNDED and self.source is not None
        ticket = self.source.ticket if rounds and self.source is not None else self.ticket
        arm = prepare(model, ticket, seed=self.runtime.seed, steps=steps)
        # The network keeps its own names, for its streams and its ticket.
        whole = Transductive(arm.model, splits) if isinstance(splits, Graph) else arm.model
        if arm.trains and not rounds:
            result = fit(
                whole,
                batches,
                optim=self.optim,
                runtime=self.runtime,
                folder=folder,
                steppers=arm.steppers,
                penalty=arm.penalty,
                progress=progress,
                fabric=fabric,
                select_from=int(steps * self.ticket.anneal),
            )
            trained = arm.model
        else:
            trained = arm.model
            if self.source is not None:
                trained = _derived(whole, arm.model, self, root)
                whole = Transductive(trained, splits) if isinstance(splits, Graph) else trained
            settle = self.ticket.method not in ROUNDED
            result = _measure(whole, batches, fabric, folder, settle=settle)
        result["stored_bytes"] = 0
        if folder.writes:
            result["stored_bytes"] = _store(trained, self, splits, folder.path, root)
        return result


def _input(splits: Data) -> dict[str, Any]:
    """Return what a network must fit, as `build` takes it."""
    if isinstance(splits, Graph):
        return {"graph": True, "features": splits.num_features}
    return {"channels": splits.channels, "image_size": splits.image_size}


def _derived(whole: nn.Module, model: nn.Module, job: TrainJob, root: Path) -> nn.Module:
    """Return what a control makes of another run's finished network."""
    if job.source is None:
        raise InputError(f"method={job.ticket.method!r} needs the folder of the finished source")
    whole.load_state_dict(
        finished_state(load_state(job.source.folder(root) / "checkpoint.safetensors"))
    )
    if job.ticket.method in ROUNDED:
        plain = _plain(model)
        return quantise(plain, job.ticket.bits).dequantise(plain)
    return shuffled(model, seed=job.runtime.seed)


@torch.no_grad()
def _measure(
    model: nn.Module, batches: Batches, fabric: Any, folder: RunFolder, *, settle: bool
) -> dict[str, Any]:
    """Evaluate a network that is not trained; `settle` takes its normalisation statistics anew."""
    folder.truncate_metrics(0)
    reset_peak()
    model = fabric.setup_module(model)
    model.train()
    # With momentum 0.1 nothing of older statistics is left after 200 batches.
    normalised = any(hasattr(m, "running_mean") for m in model.modules())
    counted = 200 if settle and normalised else 0
    epochs = itertools.chain.from_iterable(batches.train.batches(e) for e in itertools.count())
    for x, _, _ in itertools.islice(epochs, counted):
        model(fabric.to_device(x))
    metrics = {}
    for split, source in (("validation", batches.validation), ("test", batches.test)):
        if source is not None:
            figures = evaluate(model, source, fabric=fabric)
            folder.log({"step": 0, "epoch": 0, "split": split, **figures})
            metrics |= {f"{split}_loss": figures["loss"], f"{split}_accuracy": figures["accuracy"]}
    return {
        "metrics": metrics,
        "seconds": 0.0,
        "trainable_parameters": 0,
        "peak_memory_bytes": peak_bytes(),
    }


def _preparation(splits: Data, job: TrainJob) -> dict[str, Any]:
    """Return what the network's input must have gone through, and which nodes are for what."""
    if isinstance(splits, Graph):
        keys = ("graph_split", "split_seed", "train_size", "shots")
        return {
            "features": job.data.features,
            "split": {key: getattr(job.data, key) for key in keys},
        }
    return {"mean": list(splits.mean), "std": list(splits.std)}


def facts(job: TrainJob, splits: Data) -> dict[str, Any]:
    """Return what a ticket or model file says it is of: how to build it and what to feed it."""
    return {
        "model": to_dict(job.model),
        "input": _input(splits),
        **_preparation(splits, job),
        "classes": list(splits.classes),
        "data": splits.name,
        "method": job.ticket.method,
    }


def _is_masked(model: nn.Module) -> bool:
    return any(True for _ in named_masks(model))


def _plain(model: nn.Module) -> nn.Module:
    """Return a network without masks that gives the same outputs."""
    return bake(model) if _is_masked(model) else model


def _store(model: nn.Module, job: TrainJob, splits: Data, path: Path, root: Path) -> int:
    about = facts(job, splits)
    if job.ticket.method in ("iterand", "edge_popup", "random_mask"):
        return save_ticket(path / "model.ticket", model, about=about)
    if job.ticket.method in (*ROUNDED, "ternary"):
        # Rounding again what is rounded changes nothing: a scale that fits without error is found.
        rounded = quantise(_plain(model), 2 if job.ticket.method == "ternary" else job.ticket.bits)
        save_quantised(path / "model.safetensors", rounded)
        return rounded.payload_bytes if job.ticket.method == "quantised" else coded_bytes(rounded)
    if job.source is not None:
        return load_ticket(job.source.folder(root)).size
    sparse = masks(model) if _is_masked(model) else {}
    plain = _plain(model)
    write_model(path / "model.safetensors", plain, about)
    size = stored_bytes(plain)
    size -= sum(4 * int((~mask).sum()) for mask in sparse.values())
    if job.ticket.method == "random_mask_trained":
        return size  # a seed gives back the masks
    counts = [(int(mask.sum()), int((~mask).sum())) for mask in sparse.values()]
    return size + round(sum(map(entropy_bits, counts)) / 8)
