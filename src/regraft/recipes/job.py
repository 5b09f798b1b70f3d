"""One run from its config to its result: what the recipes and `regraft ticket find` share."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regraft.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    TicketConfig,
    check,
    digest,
    to_dict,
)
from regraft.data import FolderLoader, ImageSet, Splits, TensorLoader, load
from regraft.errors import InputError
from regraft.files import write_tensors
from regraft.models import build
from regraft.protocols import BatchSource
from regraft.tickets import (
    bake,
    load_ticket,
    masks,
    named_masks,
    prepare,
    save_ticket,
    shuffled,
    stored_bytes,
)
from regraft.train import (
    Batches,
    RunFolder,
    evaluate,
    fit,
    load_state,
    make_fabric,
    peak_bytes,
    reset_peak,
)
from regraft.train.loop import Progress


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that determines one run.

    Attributes:
        setting: What is compared here; runs of one comparison share it.
        arm: The method's name in tables.
        control: The arm this one is held against.
        source: For `shuffled_mask`: the finished search whose masks are shuffled.
    """

    setting: str
    arm: str
    control: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    ticket: TicketConfig = field(default_factory=TicketConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    source: Job | None = None

    def folder(self, root: Path) -> Path:
        """Return the run's own folder below `root`: setting, arm and seed."""
        return root / self.setting / self.arm / f"seed{self.runtime.seed}"

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines the numbers."""
        config = {
            name: to_dict(getattr(self, name)) for name in ("data", "model", "ticket", "optim")
        }
        # Where the data lie and how often a run saves change no number and no row.
        config["data"].pop("root")
        config["data"].pop("download")
        config["runtime"] = to_dict(self.runtime)
        config["runtime"].pop("checkpoint_seconds")
        if self.source is not None:
            config["source"] = self.source.config()
        return config

    def with_data_root(self, root: str) -> Job:
        """Return the same job with its data sets below `root`."""
        source = None if self.source is None else self.source.with_data_root(root)
        return replace(self, data=replace(self.data, root=root), source=source)

    def with_seed(self, seed: int) -> Job:
        """Return the same job at another seed."""
        source = None if self.source is None else self.source.with_seed(seed)
        return replace(self, runtime=replace(self.runtime, seed=seed), source=source)


_loaded: dict[str, Splits] = {}


def load_once(config: DataConfig) -> Splits:
    """Load a data set, or return it again if the last one loaded was the same."""
    key = digest(config)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load(config)
    return _loaded[key]


def fingerprint(splits: Splits) -> dict[str, Any]:
    """Return what tells whether a data set is still the one a run was started with."""
    found: dict[str, Any] = {"classes": len(splits.classes)}
    for name in ("train", "validation", "test"):
        images = getattr(splits, name)
        if images is None:
            continue
        seen = hashlib.blake2b(images.labels.numpy().tobytes(), digest_size=8)
        if isinstance(images, ImageSet):
            seen.update(images.images.contiguous().numpy().data)
        else:  # too large to read twice: the files' names, wherever the folder lies
            seen.update("\0".join(f"{p.parent.name}/{p.name}" for p in images.paths).encode())
        found[f"{name}_images"] = len(images)
        found[f"{name}_digest"] = seen.hexdigest()
    return found


def loaders(splits: Splits, job: Job, device: torch.device) -> Batches:
    """Return the batches of a job: augmented and shuffled for training, plain for the rest."""

    def source(images: Any, train: bool) -> BatchSource | None:
        if images is None or len(images) == 0:
            return None
        in_memory = isinstance(images, ImageSet)
        size = job.optim.batch_size
        return (TensorLoader if in_memory else FolderLoader)(
            images,
            batch_size=max(size, 500) if in_memory and not train else size,
            mean=splits.mean,
            std=splits.std,
            shuffle=train,
            augment=job.data.augment if train else "none",
            seed=job.runtime.seed,
            device=device,
        )

    train = source(splits.train, True)
    if train is None:
        raise InputError(f"data {splits.name!r} has no training images")
    return Batches(train, source(splits.validation, False), source(splits.test, False))


def run_job(job: Job, root: Path | str, *, progress: Progress | None = None) -> dict[str, Any]:
    """Run a job in its folder below `root` and return its result; a finished one is only read.

    Besides the run folder's own files it leaves `ticket.safetensors` (a search) or
    `model.safetensors` (trained weights) there.

    Raises:
        RegraftError: Whatever keeps the run from its end, in one sentence.
    """
    path = job.folder(Path(root))
    return run_in(job, path, root=Path(root), progress=progress)


def run_in(
    job: Job, path: Path, *, root: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Run a job in the folder `path`; as `run_job` otherwise."""
    check(job.data, job.model, job.ticket, job.optim, job.runtime)
    identity: dict[str, Any] = {
        "config": job.config(),
        "setting": job.setting,
        "arm": job.arm,
        "control": job.control,
        "seed": job.runtime.seed,
    }
    with RunFolder(path, **identity) as folder:
        if folder.result is not None:
            return folder.result
        fabric = make_fabric(job.runtime)
        splits = load_once(job.data)
        folder.pin("data", fingerprint(splits))
        batches = loaders(splits, job, fabric.device)
        torch.manual_seed(job.runtime.seed)
        model = build(
            job.model,
            num_classes=splits.num_classes,
            channels=splits.channels,
            image_size=splits.image_size,
        )
        steps = len(batches.train) * job.optim.epochs
        arm = prepare(model, job.ticket, seed=job.runtime.seed, steps=steps)
        if arm.trains:
            result = fit(
                arm.model,
                batches,
                optim=job.optim,
                runtime=job.runtime,
                folder=folder,
                steppers=arm.steppers,
                penalty=arm.penalty,
                progress=progress,
                fabric=fabric,
            )
            trained = arm.model
        else:
            trained = arm.model
            if job.source is not None:
                if root is None:
                    raise InputError("a shuffled mask needs the folder of the finished search")
                trained = _shuffle(arm.model, job, root)
            result = _measure(trained, batches, job, fabric, folder)
        result["stored_bytes"] = _store(trained, job, splits, path, root) if folder.writes else 0
        folder.finish(result)
        return {"schema": 1, **result}


def _shuffle(model: nn.Module, job: Job, root: Path) -> nn.Module:
    source = job.source
    if source is None:
        raise InputError("a shuffled mask needs a finished search")
    model.load_state_dict(load_state(source.folder(root) / "checkpoint.safetensors")["model"])
    return shuffled(model, seed=job.runtime.seed)


@torch.no_grad()
def _measure(
    model: nn.Module, batches: Batches, job: Job, fabric: Any, folder: RunFolder
) -> dict[str, Any]:
    """Evaluate a network that is not trained, its normalisation statistics taken from the data."""
    folder.truncate_metrics(0)
    reset_peak()
    model = fabric.setup_module(model)
    model.train()
    # With momentum 0.1 nothing of older statistics is left after 200 batches.
    epochs = itertools.chain.from_iterable(batches.train.batches(e) for e in itertools.count())
    for x, _, _ in itertools.islice(epochs, 200):
        model(fabric.to_device(x))
    metrics = {}
    for split, source in (("validation", batches.validation), ("test", batches.test)):
        if source is not None:
            found = evaluate(model, source, fabric=fabric)
            folder.log({"step": 0, "epoch": 0, "split": split, **found})
            metrics |= {f"{split}_loss": found["loss"], f"{split}_accuracy": found["accuracy"]}
    return {
        "metrics": metrics,
        "seconds": 0.0,
        "trainable_parameters": 0,
        "peak_memory_bytes": peak_bytes(),
    }


def _store(model: nn.Module, job: Job, splits: Splits, path: Path, root: Path | None) -> int:
    about = {
        "model": to_dict(job.model),
        "input": {"channels": splits.channels, "image_size": splits.image_size},
        "mean": list(splits.mean),
        "std": list(splits.std),
        "classes": list(splits.classes),
        "data": splits.name,
        "method": job.ticket.method,
    }
    if job.ticket.method in ("iterand", "edge_popup", "random_mask"):
        return save_ticket(path / "ticket.safetensors", model, about=about)
    if job.source is not None and root is not None:
        return load_ticket(job.source.folder(root)).size
    sparse = masks(model) if any(True for _ in named_masks(model)) else {}
    plain = bake(model) if sparse else model
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in plain.state_dict().items()}
    write_tensors(path / "model.safetensors", tensors, {"regraft.model": json.dumps(about)})
    size = stored_bytes(plain)
    for mask in sparse.values():
        # A sparse network would be stored as a bit a weight and its kept values.
        size -= 4 * int((~mask).sum()) - math.ceil(mask.numel() / 8)
    return size
