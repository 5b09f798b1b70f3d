"""One run from its config to its result: what the recipes and `regraft ticket find` share."""

from __future__ import annotations

import hashlib
import itertools
import json
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
from regraft.data import (
    FolderLoader,
    Graph,
    ImageSet,
    NodeBatches,
    Splits,
    TensorLoader,
    graph_fingerprint,
    graph_names,
    load,
    load_graph,
)
from regraft.errors import InputError
from regraft.files import write_tensors
from regraft.models import Transductive, build
from regraft.protocols import BatchSource
from regraft.tickets import (
    bake,
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

from .base import folder_of


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that determines one run.

    Attributes:
        setting: What is compared here; runs of one comparison share it.
        arm: The method's name in tables.
        control: The arm this one is held against.
        source: The finished run that a control starts from: for `shuffled_mask` the search whose
            masks are shuffled, for `quantised` the trained network.
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
        return folder_of(self, root)

    @property
    def sources(self) -> tuple[Job, ...]:
        """The run that has to be finished before, if there is one."""
        return () if self.source is None else (self.source,)

    def run(self, root: Path, *, progress: Progress | None = None) -> dict[str, Any]:
        """Run in the job's folder below `root`; see `run_job`."""
        return run_job(self, root, progress=progress)

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines the numbers."""
        config = {"data": data_identity(self.data)}
        config |= {name: to_dict(getattr(self, name)) for name in ("model", "ticket", "optim")}
        config["runtime"] = runtime_identity(self.runtime)
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


_LATER = {"rotate": 0.0, "only_classes": [], "normalize": "own"}
"""What data configurations gained after runs had been stored, with what stands for its absence."""


def data_identity(config: DataConfig) -> dict[str, Any]:
    """Return the JSON form of what of a data configuration determines numbers."""
    found = to_dict(config)
    # Where the data lie changes no number and no row.
    unsaid = [key for key, value in _LATER.items() if found[key] == value]
    return {k: v for k, v in found.items() if k not in ("root", "download", *unsaid)}


def runtime_identity(config: RuntimeConfig) -> dict[str, Any]:
    """Return the JSON form of what of a runtime configuration determines numbers and rows."""
    found = to_dict(config)
    found.pop("checkpoint_seconds")  # how often a run saves does not
    return found


Data = Splits | Graph

_loaded: dict[str, Data] = {}


def load_once(config: DataConfig) -> Data:
    """Load a data set or graph, or return it again if one of the last two was the same."""
    key = digest(config)
    # A run that is about two sets needs both, and its neighbour in a recipe the same two again.
    found = _loaded.pop(key, None)
    if found is None:
        for oldest in list(_loaded)[:-1]:
            del _loaded[oldest]
        found = (load_graph if config.name in graph_names() else load)(config)
    _loaded[key] = found
    return found


def fingerprint(splits: Data) -> dict[str, Any]:
    """Return what tells whether a data set is still the one a run was started with."""
    if isinstance(splits, Graph):
        return graph_fingerprint(splits)
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


def loaders(splits: Data, job: Job, device: torch.device) -> Batches:
    """Return the batches of a job: augmented and shuffled for training, plain for the rest.

    Of a graph, whatever the batch size, all training nodes are the one batch of every epoch.
    """
    if isinstance(splits, Graph):
        train, validation, test = (
            NodeBatches(splits, part, device=device) if len(getattr(splits, part)) else None
            for part in ("train", "validation", "test")
        )
        if train is None:
            raise InputError(f"data {splits.name!r} has no training nodes")
        return Batches(train, validation, test)

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

    Besides the run folder's own files it leaves `model.ticket` (a search) or
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
            **_input(splits),
        )
        steps = len(batches.train) * job.optim.epochs
        arm = prepare(model, job.ticket, seed=job.runtime.seed, steps=steps)
        # The network keeps its own names, for its streams and its ticket.
        whole = Transductive(arm.model, splits) if isinstance(splits, Graph) else arm.model
        if arm.trains:
            result = fit(
                whole,
                batches,
                optim=job.optim,
                runtime=job.runtime,
                folder=folder,
                steppers=arm.steppers,
                penalty=arm.penalty,
                progress=progress,
                fabric=fabric,
                select_from=int(steps * job.ticket.anneal),
            )
            trained = arm.model
        else:
            trained = arm.model
            if job.source is not None:
                trained = _derived(whole, arm.model, job, root)
                whole = Transductive(trained, splits) if isinstance(splits, Graph) else trained
            settle = job.ticket.method != "quantised"
            result = _measure(whole, batches, fabric, folder, settle=settle)
        result["stored_bytes"] = _store(trained, job, splits, path, root) if folder.writes else 0
        folder.finish(result)
        return {"schema": 1, **result}


def _input(splits: Data) -> dict[str, Any]:
    """Return what a network must fit, as `build` takes it."""
    if isinstance(splits, Graph):
        return {"graph": True, "features": splits.num_features}
    return {"channels": splits.channels, "image_size": splits.image_size}


def _derived(whole: nn.Module, model: nn.Module, job: Job, root: Path | None) -> nn.Module:
    """Return what a control makes of another run's finished network."""
    if root is None or job.source is None:
        raise InputError(f"method={job.ticket.method!r} needs the folder of the finished source")
    whole.load_state_dict(
        finished_state(load_state(job.source.folder(root) / "checkpoint.safetensors"))
    )
    if job.ticket.method == "quantised":
        return quantise(model, job.ticket.bits).dequantise(model)
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
            found = evaluate(model, source, fabric=fabric)
            folder.log({"step": 0, "epoch": 0, "split": split, **found})
            metrics |= {f"{split}_loss": found["loss"], f"{split}_accuracy": found["accuracy"]}
    return {
        "metrics": metrics,
        "seconds": 0.0,
        "trainable_parameters": 0,
        "peak_memory_bytes": peak_bytes(),
    }


def _preparation(splits: Data, job: Job) -> dict[str, Any]:
    """Return what the network's input must have gone through, and which nodes are for what."""
    if isinstance(splits, Graph):
        keys = ("graph_split", "split_seed", "train_size", "shots")
        return {
            "features": job.data.features,
            "split": {key: getattr(job.data, key) for key in keys},
        }
    return {"mean": list(splits.mean), "std": list(splits.std)}


def facts(job: Job, splits: Data) -> dict[str, Any]:
    """Return what a ticket or model file says it is of: how to build it and what to feed it."""
    return {
        "model": to_dict(job.model),
        "input": _input(splits),
        **_preparation(splits, job),
        "classes": list(splits.classes),
        "data": splits.name,
        "method": job.ticket.method,
    }


def _store(model: nn.Module, job: Job, splits: Data, path: Path, root: Path | None) -> int:
    about = facts(job, splits)
    if job.ticket.method in ("iterand", "edge_popup", "random_mask"):
        return save_ticket(path / "model.ticket", model, about=about)
    if job.ticket.method == "quantised":
        # Rounding again what is rounded changes nothing: a scale that fits without error is found.
        rounded = quantise(model, job.ticket.bits)
        save_quantised(path / "model.safetensors", rounded)
        return rounded.payload_bytes
    if job.source is not None and root is not None:
        return load_ticket(job.source.folder(root)).size
    sparse = masks(model) if any(True for _ in named_masks(model)) else {}
    plain = bake(model) if sparse else model
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in plain.state_dict().items()}
    write_tensors(path / "model.safetensors", tensors, {"regraft.model": json.dumps(about)})
    size = stored_bytes(plain)
    # The masks of a sparse network are random, so a seed gives them back: only kept values count.
    return size - sum(4 * int((~mask).sum()) for mask in sparse.values())
