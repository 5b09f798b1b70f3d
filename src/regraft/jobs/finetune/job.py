"""Fine-tuning on a user's images from the data to a result folder; what the command line runs."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from regraft.checkpoints.read import Checkpoint, read_checkpoint
from regraft.config import (
    Augmentation,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    SearchConfig,
    check,
    to_dict,
)
from regraft.data import (
    Splits,
    load_partition,
    with_channels,
)
from regraft.errors import InputError, MissingExtraError
from regraft.features import METHODS
from regraft.features import build as build_method
from regraft.files import write_text
from regraft.jobs.data import fingerprint
from regraft.train import (
    RunFolder,
    make_fabric,
)

from .batches import EPOCHS, workshop_of
from .files import about_of, write_result
from .search import Stage, search
from .start import Start, start_from
from .start_network import HUBS
from .trial import has_weight, make_method

# Methods that mean nothing without pretrained weights.
_HOLDING_ON = frozenset(
    ("adarand", "bitfit", "co_tuning", "delta", "dr_tune", "l2sp", "linear_probe", "lp_ft")
)


@dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """Everything that determines a fine-tuning run.

    Attributes:
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
    """

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
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines the numbers."""
        parts = ("data", "model", "finetune", "search", "optim", "runtime")
        found: dict[str, Any] = {name: to_dict(getattr(self, name)) for name in parts}
        for part, key in (
            ("data", "root"),
            ("data", "augment"),
            ("data", "download"),
            ("runtime", "checkpoint_seconds"),
            # Said below, where they may be left open.
            ("optim", "lr"),
            ("optim", "epochs"),
            ("optim", "optimizer"),
            ("optim", "weight_decay"),
        ):
            found[part].pop(key)
        more = ("test", "channels", "pretrained", "lr", "optimizer", "weight_decay", "mean", "std")
        more += ("augment", "epochs")
        found |= {k: list(v) if isinstance(v := getattr(self, k), tuple) else v for k in more}
        for name in ("checkpoint", "listed"):
            file = getattr(self, name)
            found[name] = None if file is None else _digest(file)
        return found


Said = Callable[[str], None]
"""Called with a sentence that the user should know."""


def run_finetune(
    job: FinetuneJob, path: Path, *, stage: Stage | None = None, say: Said | None = None
) -> dict[str, Any]:
    """Fine-tune in the folder `path` and return the result; a finished one is only read.

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

    Raises:
        RegraftError: Whatever keeps the run from its end, in one sentence.
    """
    stage = stage or (lambda _: None)
    say = say or (lambda _: None)
    _check(job)
    method = job.finetune.method
    with RunFolder(
        path,
        config=job.config(),
        setting=_setting(job),
        arm=method,
        control=None if method == "plain" else "plain",
        seed=job.runtime.seed,
    ) as folder:
        if folder.result is not None:
            return folder.result
        fabric = make_fabric(job.runtime)
        checkpoint = None if job.checkpoint is None else read_checkpoint(job.checkpoint)
        splits, listed, notes = _splits(job)
        start = _start(job, splits, checkpoint)
        notes += start.notes
        # What a method cannot do without is missed here, not after the search.
        make_method(job.finetune, None, job.runtime.seed, start.source)
        splits = _normalised(job, splits, start)
        folder.pin("data", fingerprint(splits))
        write_text(path / "split.csv", listed)
        workshop = workshop_of(job, splits, start, fabric)
        stage = _after(notes, say, stage)
        epochs = workshop.optim.epochs
        setting, searched = search(
            workshop,
            job.search,
            path,
            lr=job.lr,
            epochs=epochs,
            identity={k: v for k, v in job.config().items() if k != "search"},
            stage=stage,
        )
        model, result = workshop.train(
            setting.lr,
            setting.weight,
            epochs,
            folder,
            progress=stage(f"training {setting}"),
            test=True,
        )
        about = about_of(job, splits, start)
        result |= {"chosen": searched["chosen"], "optimizer": workshop.optim.optimizer}
        result |= write_result(path, model, workshop, splits, about, result, searched)
        folder.finish(result)
        # Whole and stored as the model: what only going on would need is not kept.
        (path / "checkpoint.safetensors").unlink(missing_ok=True)
        return {"schema": 1, **result}


def _setting(job: FinetuneJob) -> str:
    """Return what runs must share to be compared."""
    data = Path(job.data.name).name or job.data.name
    parts = [data, job.model.name.replace("/", "-").replace(":", "-")]
    return "/".join([*parts, *([] if job.data.shots is None else [f"shots={job.data.shots}"])])


def _check(job: FinetuneJob) -> None:
    check(job.model, job.finetune, job.search, job.optim, job.runtime)
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
    if job.finetune.method != "co_tuning":  # which needs the network first
        build_method(job.finetune.method, **job.finetune.options)
    kind: Any = METHODS[job.finetune.method]
    if job.finetune.mixup is not None and not kind.takes_soft_targets:
        raise InputError(
            f"--mixup: method {job.finetune.method!r} needs one class an image; leave it out, or take "
            "another method"
        )
    given = (job.finetune.weight is not None, bool(job.search.weight))
    if any(given) and not has_weight(job.finetune.method):
        raise InputError(f"--weight: method {job.finetune.method!r} has no weight; leave it out")
    if job.optimizer not in ("auto", "sgd", "adamw"):
        raise InputError(f"optimizer={job.optimizer!r}: expected auto, sgd or adamw")
    if (job.mean is None) != (job.std is None):
        raise InputError("--mean and --std belong together: give both or neither")


def _after(notes: list[str], say: Said, stage: Stage) -> Stage:
    """Return a stage that first says what there is to say, once nothing can be refused any more."""

    def begin(what: str) -> Any:
        while notes:
            say(notes.pop(0))
        return stage(what)

    return begin


def _splits(job: FinetuneJob) -> tuple[Splits, str, list[str]]:
    parted = load_partition(job.data, test=job.test, listed=job.listed)
    splits = parted.splits
    if splits.validation is None:
        raise InputError("there are no validation images: hold some out with --validation 0.2")
    notes = []
    counts = torch.bincount(splits.train.labels, minlength=splits.num_classes)
    single = [splits.classes[i] for i in (counts == 1).nonzero().flatten().tolist()]
    if single:
        named = ", ".join(map(repr, single[:5])) + (", ..." if len(single) > 5 else "")
        notes.append(f"one training image only of {len(single)} class(es): {named}")
    if splits.test is None:
        notes.append(
            "no test images: the figures come from the validation images that the choice was made on"
        )
    return with_channels(splits, job.channels or splits.channels), parted.to_csv(), notes


def _start(job: FinetuneJob, splits: Splits, checkpoint: Checkpoint | None) -> Start:
    torch.manual_seed(job.runtime.seed)
    start = start_from(
        job.model,
        classes=splits.classes,
        channels=splits.channels,
        image_size=splits.image_size,
        checkpoint=checkpoint,
        pretrained=job.pretrained,
        want_source=job.finetune.method == "co_tuning",
    )
    method, name = job.finetune.method, job.model.name
    if not start.inherits and name.startswith(HUBS) and _needs_pretrained(job.finetune):
        raise InputError(
            f"method {method!r} holds on to what pretrained weights know, and {name} starts from "
            "random weights: give --pretrained or --checkpoint FILE, or train it with --method plain"
        )
    return start


def _needs_pretrained(config: FinetuneConfig) -> bool:
    if config.method == "randreg":
        return config.options.get("kind", "class") in ("source", "class")
    return config.method in _HOLDING_ON


def _normalised(job: FinetuneJob, splits: Splits, start: Start) -> Splits:
    mean, std = (job.mean, job.std) if job.mean is not None else (start.mean, start.std)
    if mean is None or std is None:
        return splits
    if len(mean) != splits.channels or len(std) != splits.channels or min(std) <= 0:
        raise InputError(
            f"mean={list(mean)} and std={list(std)}: expected a number for each of the "
            f"{splits.channels} channel(s), std above 0"
        )
    return replace(splits, mean=mean, std=std)


def _digest(file: Path) -> str:
    """Return what identifies a file by its bytes, wherever it lies."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
