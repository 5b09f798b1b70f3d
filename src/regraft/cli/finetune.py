"""`regraft finetune`: a pretrained network and a folder of images in, a usable model out."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from regraft.config import (
    Augmentation,
    DataConfig,
    FinetuneConfig,
    ModelConfig,
    OptimConfig,
    Schedule,
    SearchConfig,
)
from regraft.config.check import option_of
from regraft.config.generate import SOURCES, ConditionsName, SslName
from regraft.errors import InputError
from regraft.jobs.stages import Stages

from .generator_options import NAMES, GeneratorOptions
from .json_option import json_object
from .options import (
    DataOptions,
    LongRuntimeOptions,
    ModelOptions,
    Network,
    NormalisedOptions,
    Options,
    ResultOptions,
    default_out,
    pick,
    registered,
)
from .output import print_json, say

METHOD_NAMES = registered("features/registry.py", r'^    "(\w+)": \w+,$')
_COMPARED = registered("features/registry.py", r'^COMPARED = \("(\w+)", "(\w+)"\)$')[0]
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True)
class PartOptions(DataOptions):
    """Which images are for what, and where known sets lie."""

    validation: float = 0.2
    """Share of the images held out to choose on, where the folder has no val."""
    test: float = 0.2
    """Share of the images held out for the final figure, where the folder has no test."""
    split: Path | None = None
    """A split.csv that says which image is for what, e.g. that of another run."""
    shots: int | None = None
    """Train on this many images of each class, and choose on no more."""
    split_seed: int = 777
    """Seed of the split."""

    def config(self, name: str, **more: Any) -> DataConfig:
        """Return which data; see `DataOptions.config`.

        Raises:
            InputError: As there, or a list of the parts and a share of one.
        """
        for option in ("validation", "test", "shots", "split_seed"):
            value = getattr(self, option)
            if self.split is not None and value != getattr(PartOptions, option):
                raise InputError(
                    f"{option_of(option)} {value}: --split says which image is for what; give one of them"
                )
        return super().config(name, **more)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Options):
    """How the network is trained."""

    epochs: int | None = None
    """Passes over the training images; without it 30, or as many as 200 steps take."""
    batch_size: int = 32
    """Images in a batch."""
    optimizer: Literal["auto", "sgd", "adamw"] = "auto"
    """SGD with Nesterov momentum, or AdamW; auto takes AdamW for networks with LayerNorm."""
    weight_decay: float | None = None
    """Weight decay; without it 1e-4, or 0 for methods that decay weights themselves."""
    schedule: Schedule = "cosine"
    """How the learning rate falls."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up."""
    label_smoothing: float = 0.0
    """Label smoothing."""
    clip_norm: float | None = None
    """Clip the gradients' norm."""
    accumulate: int = 1
    """Chunks into which a batch is cut."""
    layer_decay: float = 1.0
    """Factor of the learning rate from a layer to the one below it, e.g. 0.75."""
    head_factor: float = 1.0
    """Learning rate of the classifier over that of the layer below it, e.g. 10."""
    freeze_batchnorm: bool = False
    """Keep BatchNorm as the source left it."""
    ema: float | None = None
    """Keep a running average of the weights with this decay, e.g. 0.99."""
    mixup: float | None = None
    """alpha of mixup, e.g. 0.2, for methods that allow it."""
    class_weights: bool = False
    """Weigh the loss of each class by the inverse of its number of images."""
    balanced_sampling: bool = False
    """Show the images of rare classes over again, until all classes are as many in an epoch."""
    augment: Augmentation | None = None
    """Augmentation of the training images: resized-crop-flip suits photographs; without it crop, and
    none below 24 pixels."""


@dataclass(frozen=True, kw_only=True)
class UnlabelledOptions(Options):
    """Learn from images without labels as well: a folder's, or those of a generator (P-SSL)."""

    unlabelled: Annotated[
        str | None, tyro.conf.arg(help=f"A folder of images without labels; or {SOURCES}.")
    ] = None
    unlabelled_options: str = "{}"
    """How a generator is called, where one batch does not tell: weights, options, classes, latent, method,
    labels, pixels, image_shape, as a JSON object."""
    source_classifier: Path | None = None
    """Model file of a classifier of the generator's classes: what it says of your images is generated;
    uniform classes without it."""
    ssl: SslName = "uda"
    """The loss on images without labels."""
    ssl_weight: float = 1.0
    """Weight of that loss."""
    ssl_warmup: int = 100
    """Steps over which the weight rises from 0."""
    ssl_batch: int = 64
    """Images without labels a step."""
    ssl_threshold: float | None = None
    """Least probability of a target that counts; the loss's own without it."""
    ssl_temperature: float | None = None
    """What logits are divided by for a target; the loss's own without it."""
    own_head: bool = False
    """Give these images a head of their own, and train the classifier on labelled ones alone."""
    conditions: ConditionsName = "soft"
    """What the source classifier's answers become."""
    temperature: float = 1.0
    """What its logits are divided by."""

    def extras(self, unreadable: Literal["refuse", "skip"]) -> tuple[Any, ...]:
        """Return the further loss, if there is one.

        Args:
            unreadable: What is done about files that cannot be decoded.

        Raises:
            InputError: Options of it without --unlabelled, or one out of its range.
        """
        from regraft.config import SourceConfig, SslConfig

        values = self.values()
        if self.unlabelled is None:
            for name, value in values.items():
                if value != getattr(UnlabelledOptions, name):
                    raise InputError(
                        f"--{name.replace('_', '-')} is about images without labels: add --unlabelled"
                    )
            return ()
        more = json_object(self.unlabelled_options, "--unlabelled-options")
        free = [f.name for f in dataclasses.fields(SourceConfig) if f.name != "name"]
        if unknown := sorted(more.keys() - set(free)):
            raise InputError(
                f"--unlabelled-options has {unknown[0]!r}: expected some of {', '.join(free)}"
            )
        if isinstance(more.get("image_shape"), list):
            more["image_shape"] = tuple(more["image_shape"])
        from regraft.jobs.generate.unlabelled import UnlabelledTerm

        file = self.source_classifier
        term = UnlabelledTerm(
            source=pick(SourceConfig, {**more, "name": self.unlabelled}),
            ssl=pick(SslConfig, values),
            classifier=None if file is None else str(file),
            unreadable=unreadable,
        )
        return (term,)


@dataclass(frozen=True, kw_only=True)
class FinetuneVerb(Options):
    """Fine-tune a network on few images; learning rate and weight are chosen on validation.

    Leaves a folder with the model, its card and a report; the same command goes on after an
    interruption. `regraft predict` and `regraft evaluate` use the folder.
    """

    data: str
    """A folder of images (train/val/test, or one subfolder a class) or a known data set."""
    model: str | None = None
    """timm/NAME, torchvision/NAME, package.module:factory, a built-in network, or a Regraft file."""
    checkpoint: Path | None = None
    """Weights to start from, a .safetensors file."""
    pretrained: bool = False
    """Start from the weights of timm's or torchvision's hub; without them and --checkpoint from random
    ones, which most methods refuse for networks of a hub."""
    method: Annotated[
        str,
        tyro.conf.arg(
            help=f"{', '.join(METHOD_NAMES)}; auto: the best of a linear probe, {' and '.join(_COMPARED)}; "
            f"{' or '.join(NAMES)} with --generator, or both as in adarand+mgr."
        ),
    ] = "adarand"
    method_options: str = "{}"
    """Further keyword arguments of the method, as a JSON object."""
    out: Path | None = None
    """Folder to make or go on with; runs/finetune-DATA-METHOD without it."""
    lr: tuple[float, ...] = ()
    """Learning rate, or several to choose from; a grid by optimiser without it."""
    weight: tuple[float, ...] = ()
    """Weight of the method, or several to choose from; a grid around its own without it."""
    budget: str = "10m"
    """About how long choosing may take, e.g. 90s, 10m, 2h."""
    trials: int | None = None
    """Compare this many settings, whatever the time: the same plan on every machine. 1 takes the first."""
    folds: int | None = None
    """Judge settings by this many folds of all images that are not for the test, 0 by the validation
    images alone; without it five where there are fewer than 50 of these."""
    choose_by: Literal["auto", "accuracy", "balanced"] = "auto"
    """Choose by accuracy, or by its mean over classes; auto takes the mean for uneven classes."""
    sets: Annotated[PartOptions, tyro.conf.arg(name="data")] = field(default_factory=PartOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    more: Annotated[UnlabelledOptions, tyro.conf.arg(name="unlabelled images")] = field(
        default_factory=UnlabelledOptions
    )
    network: Network = field(default_factory=ModelOptions)
    images: NormalisedOptions = field(default_factory=NormalisedOptions)
    generated: Annotated[GeneratorOptions, tyro.conf.arg(name="generator")] = field(
        default_factory=GeneratorOptions
    )
    runtime: LongRuntimeOptions = field(default_factory=LongRuntimeOptions)
    output: ResultOptions = field(default_factory=ResultOptions)

    def run(self) -> int:
        """Fine-tune, show progress, and tell what was found."""
        from regraft.machine import world_size
        from regraft.train import keep_freed_memory

        if world_size() > 1:
            raise InputError("regraft finetune runs in one process: start it without torchrun")
        keep_freed_memory()
        job = self.job()
        out = self.folder()
        with Stages(enabled=not self.output.json) as stages:
            result = job.run_in(out, progress=stages)
        facts = {"out": str(out), "method": self.method, **result}
        facts.pop("schema", None)
        if self.output.json:
            print_json(facts)
            return 0
        _tell(out, result)
        return 0

    def folder(self) -> Path:
        """Return the result folder."""
        return self.out or default_out("finetune", Path(self.data).resolve().name, self.method)

    def job(self) -> Any:
        """Return what is to be done.

        Raises:
            InputError: An argument that cannot be understood, or a Regraft file that does not say
                what it is of.
        """
        from regraft.jobs.finetune.job import FinetuneJob

        if self.training.class_weights and self.training.balanced_sampling:
            raise InputError("--class-weights and --balanced-sampling do the same twice: give one")
        values, training, images = self.values(), self.training, self.images
        model, checkpoint, size, channels = self._network()
        one_rate, one_weight = len(self.lr) == 1, len(self.weight) == 1
        options = json_object(self.method_options, "--method-options")
        one = "it is trained by one process"
        method, extras = self.generated.parted(self.method)
        return FinetuneJob(
            data=self.sets.config(self.data, image_size=size),
            augment=training.augment,
            test=self.sets.test,
            channels=channels,
            listed=self.sets.split,
            model=model,
            checkpoint=checkpoint,
            pretrained=self.pretrained,
            finetune=pick(
                FinetuneConfig,
                values,
                method=method,
                weight=self.weight[0] if one_weight else None,
                options=options,
            ),
            search=pick(
                SearchConfig,
                values,
                seconds=_seconds(self.budget),
                lr=() if one_rate else self.lr,
                weight=() if one_weight else self.weight,
            ),
            optim=pick(OptimConfig, values, lr=0.1, optimizer="sgd", weight_decay=0.0, epochs=30),
            epochs=training.epochs,
            lr=self.lr[0] if one_rate else None,
            optimizer=training.optimizer,
            weight_decay=training.weight_decay,
            mean=images.mean or None,
            std=images.std or None,
            runtime=self.runtime.config(refuse=("devices",), because=one, log_every=10),
            extras=(*extras, *self.more.extras(self.sets.unreadable)),
        )

    def _network(self) -> tuple[ModelConfig, Path | None, int | None, int | None]:
        """Return network, checkpoint, image size and channels; a Regraft file knows its own."""
        images = self.images
        name, checkpoint = self.model, self.checkpoint
        if name is not None and name.endswith(".safetensors"):
            if checkpoint is not None:
                raise InputError("--model is a file of weights and so is --checkpoint: give one")
            name, checkpoint = None, Path(name)
        if checkpoint is None:
            config = self.network.config(name or "conv_small")
            return config, None, images.image_size, images.channels
        known = _known(checkpoint, name)
        size = images.image_size or known.get("image_size")
        channels = images.channels or known.get("channels")
        if name is not None or "model" not in known:
            if name is None:
                raise InputError(
                    f"{checkpoint} does not say which network it is of: name it with --model"
                )
            return self.network.config(name), checkpoint, size, channels
        model, options = known["model"], json_object(self.network.model_options)
        model = dataclasses.replace(model, options={**model.options, **options})
        return model, checkpoint, size, channels


def _known(checkpoint: Path, name: str | None) -> dict[str, Any]:
    """Return what a Regraft file says of itself: nothing for another file."""
    from regraft.checkpoints.model_card import is_elsewhere
    from regraft.checkpoints.read import read_checkpoint
    from regraft.jobs.predict.network import facts_of

    known = read_checkpoint(checkpoint)
    if not known.about:
        return {}
    config, shape = facts_of(known, checkpoint)
    if shape.get("graph"):
        raise InputError(f"{checkpoint} is a network for graphs: expected one for images")
    if name is None and is_elsewhere(config.name):
        raise InputError(
            f"{checkpoint} names the factory {config.name}, which is code outside the file: pass "
            f"--model {config.name} if you trust it"
        )
    return {"model": config, "image_size": shape["image_size"], "channels": shape["channels"]}


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise InputError(f"--budget {text}: expected a time above 0 such as 90s, 10m or 2h")
    return float(match[1]) * _UNITS[match[2]]


def _tell(out: Path, result: dict[str, Any]) -> None:
    from regraft.report import read_card
    from regraft.train import read_json

    metrics, chosen = result["metrics"], result["chosen"]
    searched = read_json(out / "search.json") or {}
    if "untried" in searched:
        say(f"note: {searched['basis']}")
    rate = [] if chosen["lr"] is None else [f"learning rate {chosen['lr']:g}"]
    weight = [] if chosen["weight"] is None else [f"weight {chosen['weight']:g}"]
    epoch = metrics.get("selected_epoch")
    state = [] if epoch is None else [f"state after epoch {epoch + 1}"]
    say(", ".join([chosen["method"], *rate, *weight, *state]))
    for split in ("validation", "test"):
        if f"{split}_accuracy" in metrics:
            say(
                f"{split} accuracy: {metrics[f'{split}_accuracy']:.2f}% of {result['judged'][split]}"
            )
    for row in result.get("extras", []):
        cure = "" if row["passed"] else ", so they changed nothing: lower --ssl-threshold"
        say(f"{row['what']}: {row['passed']:.1%} of {row['images']:,} were confident{cure}")
        if row.get("fallback"):
            say(f"note: {row['fallback']}")
    say(f"model: {out / 'model.safetensors'}")
    say(f"card: {out / 'README.md'}; report: {out / 'report.html'}")
    card = read_card(out)
    for command in () if card is None else card.next:
        say(f"next: {command}")
