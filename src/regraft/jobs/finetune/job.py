"""Fine-tuning on a user's images from the data to a result folder; what the command line runs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from regraft.checkpoints.read import Checkpoint, read_checkpoint
from regraft.config import (
    Augmentation,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    SearchConfig,
    check,
)
from regraft.data import Splits, known_names, load_partition, with_channels
from regraft.data.load import folder_side
from regraft.data.side import USUAL
from regraft.digests import weights_digest
from regraft.errors import InputError, MissingExtraError, few
from regraft.features import METHODS
from regraft.features import build as build_method
from regraft.features.registry import AUTO, COMPARED, CONTROL
from regraft.jobs.base import Job
from regraft.jobs.data import fingerprint
from regraft.jobs.predict.used_images import write_used
from regraft.jobs.stages import Shown, Stages, begin
from regraft.models import model_names
from regraft.train import RunFolder, make_fabric

from .choice import Choice
from .defaults import EPOCHS, augment_for, metric_for, optim_for
from .engine import Tuner, normalised, tuner
from .extra import ExtraTerm
from .files import about_of, write_result
from .methods import has_weight, make_method, needs_pretrained, needs_source_head
from .search import Stage
from .start import Start, start_from
from .start_network import HUBS


@dataclass(frozen=True, kw_only=True)
class FinetuneJob(Job):
    """Everything that determines a fine-tuning on a user's images.

    Killed at any point and started again, it ends with the same numbers. It leaves

    ```
    model.safetensors   the weights; the header says what they are of and how images are prepared
    classes.txt         the classes, one a line, in the order of the outputs
    split.csv           which image was for training, for validation, for the final figure
    search.json         every trial of the search and what was chosen
    evaluation.json     confusion matrix, per-class figures, calibration
    README.md           the model's card;  report.html  the same with figures
    ```

    and the files of any run: regraft.json, environment.json, data.json, metrics.jsonl, result.json.

    Attributes:
        setting: Data, network and shots, by which runs are compared; it follows from the rest.
        arm: The method, likewise.
        test: Share of a folder without test images that is held out for them.
        channels: Bring images to 1 or 3 channels; as they are by default.
        listed: A list of which image is for what, instead of drawing it.
        checkpoint: Weights to start from.
        pretrained: Start from the weights of a hub.
        lr: Learning rate; chosen on validation without one.
        epochs: Passes over the training images; without a number 30, or as many as 200 steps take.
        optimizer: `auto` is AdamW for a network with LayerNorm and SGD for the others.
        weight_decay: Without one 1e-4, and 0 for methods that decay weights themselves.
        mean: Mean of each channel to normalise by; without it that of the starting weights where
            it is known, and of the training images elsewhere.
        std: The same for the standard deviation.
        augment: Augmentation of the training images; without it `crop`, and `none` for images so
            small that shifts of 4 pixels would move the object out of them.
        extras: What makes further losses (`extra.py`).
    """

    keeps_checkpoint = False  # stored as the model

    setting: str = ""
    arm: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    test: float = 0.2
    channels: int | None = None
    listed: Path | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    checkpoint: Path | None = None
    pretrained: bool = False
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lr: float | None = None
    epochs: int | None = None
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    weight_decay: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augment: Augmentation | None = None
    extras: tuple[ExtraTerm, ...] = ()

    def __post_init__(self) -> None:
        more = [name for e in self.extras if (name := getattr(e, "name", ""))]
        method = self.finetune.method
        arm = "+".join(([] if more and method == CONTROL else [method]) + more)
        control = None if arm == CONTROL else CONTROL
        names = (("setting", _setting(self)), ("arm", arm), ("control", control))
        for name, value in names:
            object.__setattr__(self, name, value)

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines the numbers."""
        config = super().config()
        config["data"].pop("augment")
        for key in ("lr", "epochs", "optimizer", "weight_decay"):
            config["optim"].pop(key)  # said outside, where they may be left open
        for name in ("checkpoint", "listed"):
            file = getattr(self, name)
            config[name] = None if file is None else weights_digest(file)
        return config

    def check(self) -> None:
        """Refuse what cannot be run; see `Job.check`."""
        super().check()
        _check(self)

    def fingerprints(self) -> list[dict[str, Any]]:
        """Return nothing: `work` pins the images as they are parted."""
        return []

    def run_in(self, path: Path, *, progress: Shown = None, **options: Any) -> dict[str, Any]:
        """Run in the folder `path`; `progress` may show stages, one after the other."""
        result = super().run_in(path, progress=cast("Any", progress), **options)
        for file in (path / "search").rglob("checkpoint.safetensors"):
            file.unlink()  # the winner's, which is the model now
        return result

    def work(self, folder: RunFolder, root: Path, progress: Shown) -> dict[str, Any]:
        """Choose, train, measure and write; see `Job.work`."""
        path = folder.path
        checkpoint = None if self.checkpoint is None else read_checkpoint(self.checkpoint)
        splits, notes = _splits(self)
        start = _start(self, splits, checkpoint)
        notes += start.notes
        # What a method cannot do without is missed here, not after the search.
        for name in COMPARED if self.finetune.method == AUTO else (self.finetune.method,):
            one = replace(self.finetune, method=name)
            make_method(one, None, self.runtime.seed, start.source)
        splits = normalised(splits, start, self.mean, self.std)
        folder.pin("data", fingerprint(splits))
        tuning = self._tuner(start, splits)
        identity = {k: v for k, v in self.config().items() if k != "search"}
        identity["chosen_by"] = tuning.metric
        choice = Choice(
            tuning,
            self.search,
            path,
            lr=self.lr,
            identity=identity,
            # A user who names the number of training images means it: folds are of these alone.
            with_validation=self.data.shots is None,
            probes=start.inherits or self.finetune.method == AUTO,
        )
        if choice.folds and self.data.shots is None:  # trained on in the end
            rows = ((n, c, "train" if p == "validation" else p) for n, c, p in splits.rows)
            ordered = sorted(rows, key=lambda r: (r[2] == "test", r[1], r[0]))
            splits = replace(splits, rows=tuple(ordered))
        write_used(path, [splits])
        chosen = choice.make(folder, _after(notes, progress))
        about = about_of(
            self.model, self.arm.replace(AUTO, chosen.method), chosen.tuner.splits, start
        )
        return write_result(path, chosen, about)

    def _tuner(self, start: Start, splits: Splits) -> Tuner:
        optim = optim_for(
            start.model,
            splits,
            self.finetune.method,
            self.optim,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            epochs=self.epochs,
            frozen=self.finetune.freeze_batchnorm,
        )
        return tuner(
            start,
            splits,
            self.finetune,
            optim,
            self.runtime,
            make_fabric(self.runtime),
            augment=augment_for(splits, self.augment),
            metric=metric_for(splits, self.search.choose_by),
            extras=self.extras,
        )


def _setting(job: FinetuneJob) -> str:
    """Return what runs must share to be compared."""
    data = Path(job.data.name).name or job.data.name
    parts = [data, job.model.name.replace("/", "-").replace(":", "-")]
    return "/".join([*parts, *([] if job.data.shots is None else [f"shots={job.data.shots}"])])


def _check(job: FinetuneJob) -> None:
    epochs = EPOCHS if job.epochs is None else job.epochs
    decay, rate = job.weight_decay or 0.0, job.lr or job.optim.lr
    check(replace(job.optim, lr=rate, weight_decay=decay, epochs=epochs))
    if job.lr == 0:
        raise InputError("--lr 0: expected a finite number above 0")
    for package, extra in (("jinja2", "report"), ("matplotlib", "report")):
        if importlib.util.find_spec(package) is None:  # better now than after the training
            raise MissingExtraError(package, extra, "the report of a fine-tuning")
    for key in ("weight", "seed"):
        if key in job.finetune.options:
            raise InputError(
                f"--method-options has {key!r}, which has an option of its own: use --{key}"
            )
    names = COMPARED if job.finetune.method == AUTO else (job.finetune.method,)
    if job.finetune.method == AUTO and (job.finetune.options or any(_weights(job))):
        raise InputError(
            "--method auto takes the methods as they are: name one to give it --weight or --method-options"
        )
    for name in names:
        one = replace(job.finetune, method=name)
        if not needs_source_head(one):  # which needs the network first
            build_method(name, **one.options)
        if one.mixup is not None and not METHODS[name].takes_soft_targets:
            raise InputError(
                f"--mixup: method {name!r} needs one class an image; leave it out, or take another method"
            )
    if any(_weights(job)) and not has_weight(names[0]):
        raise InputError(f"--weight: method {job.finetune.method!r} has no weight; leave it out")
    if job.optimizer not in ("auto", "sgd", "adamw"):
        raise InputError(f"optimizer={job.optimizer!r}: expected auto, sgd or adamw")
    if (job.mean is None) != (job.std is None):
        raise InputError("--mean and --std belong together: give both or neither")


def _weights(job: FinetuneJob) -> tuple[bool, bool]:
    """Return whether the weight is named, and whether several are."""
    return job.finetune.weight is not None, bool(job.search.weight)


def _after(notes: list[str], progress: Shown) -> Stage:
    """Return a stage that first says what there is to say, once nothing can be refused any more."""

    def next_stage(what: str) -> Any:
        while notes:
            note = notes.pop(0)
            if isinstance(progress, Stages):
                progress.say(note)
        return begin(progress, what)

    return next_stage


def _splits(job: FinetuneJob) -> tuple[Splits, list[str]]:
    data, notes = _at_a_side(job)
    splits = load_partition(data, test=job.test, listed=job.listed)
    if splits.validation is None and job.search.folds == 0:
        listed = f"give some the split validation in {job.listed}"
        cure = "hold some out with --validation 0.2" if job.listed is None else listed
        raise InputError(f"there are no validation images: {cure}")
    counts = torch.bincount(splits.train.labels, minlength=splits.num_classes)
    single = [splits.classes[i] for i in (counts == 1).nonzero().flatten().tolist()]
    if single:
        notes.append(
            f"one training image only of {len(single)} class(es): {few(map(repr, single))}"
        )
    if splits.test is None:
        notes.append(
            "no test images: the figures come from the validation images that the choice was made on"
        )
    return with_channels(splits, job.channels or splits.channels), notes


def _at_a_side(job: FinetuneJob) -> tuple[DataConfig, list[str]]:
    """Return the data at a size, and what to say where images are resized unasked.

    A network of others was made for images of the usual size; our own take them as they are.
    """
    if job.data.image_size is not None or job.data.name in known_names():
        return job.data, []
    side, note = folder_side(job.data, None if job.model.name in model_names() else USUAL)
    return replace(job.data, image_size=side), [note] if note else []


def _start(job: FinetuneJob, splits: Splits, checkpoint: Checkpoint | None) -> Start:
    torch.manual_seed(job.runtime.seed)
    start = start_from(
        job.model,
        classes=splits.classes,
        channels=splits.channels,
        image_size=splits.image_size,
        checkpoint=checkpoint,
        pretrained=job.pretrained,
        want_source=needs_source_head(job.finetune),
    )
    method, name = job.finetune.method, job.model.name
    if not start.inherits and name.startswith(HUBS) and needs_pretrained(job.finetune):
        raise InputError(
            f"method {method!r} holds on to what pretrained weights know, and {name} starts from "
            "random weights: give --pretrained or --checkpoint FILE, or train it with --method plain"
        )
    return start
