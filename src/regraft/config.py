"""What a run is, as plain data: frozen dataclasses without torch, written into the run folder.

A recipe is a function that returns these; the command line fills the same ones. `to_dict` gives
the JSON form, and `digest` the identity by which a run folder knows its own command again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import InputError

Augmentation = Literal["none", "flip", "crop", "crop-flip", "resized-crop-flip"]
Allocation = Literal["uniform", "erk", "epl", "igq"]
Normalisation = Literal["own", "none", "imagenet"]
Schedule = Literal[
    "constant", "cosine", "epoch-cosine", "linear", "multistep", "multistep-30-60-80"
]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, or which graph, and how they are split."""

    name: str = "digits"
    """A known set (`digits`, `mnist`, `fashion_mnist`, ...) or the path of an image folder."""
    root: str | None = None
    """Folder of the known sets; without it `REGRAFT_DATA`, then `~/.cache/regraft/data`."""
    download: bool = True
    """Fetch a missing set where a network exists."""
    train_size: int | None = None
    """Keep this many training images, stratified by class."""
    shots: int | None = None
    """Keep this many training images of each class."""
    validation: float = 0.1
    """Share of the training images held out for validation, stratified by class."""
    split_seed: int = 777
    augment: Augmentation = "none"
    image_size: int | None = None
    """Resize to this square, in pixels; an image folder without it takes 224."""
    rotate: float = 0.0
    """Turn every image counterclockwise by this angle, in degrees."""
    only_classes: tuple[int, ...] = ()
    """Keep the images of these classes alone, their labels as they are; all by default."""
    normalize: Normalisation = "own"
    """Mean and deviation of the training images; 0 and 1, which leaves pixels in [0, 1]; ImageNet's."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """What to do with an image that cannot be decoded: stop and name it, or warn and go on."""
    graph_split: Literal["public", "full", "random"] = "public"
    """Of a graph: the published split, all other nodes for training, or drawn with `split_seed`."""
    features: Literal["raw", "row", "l2"] = "raw"
    """Of a graph: features as published, rows that sum to one, or of one Euclidean length."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network: a built-in name, `timm/NAME`, or `package.module:factory`."""

    name: str = "conv_small"
    width: float = 1.0
    """Width factor of the built-in networks."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the factory."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser, schedule and length of training."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    epochs: int = 10
    batch_size: int = 128
    """Global batch: over all processes and accumulation chunks together."""
    accumulate: int = 1
    """Chunks into which each process cuts its share of a batch."""
    schedule: Schedule = "epoch-cosine"
    warmup_epochs: int = 0
    cooldown_epochs: int = 0
    """Epochs at `cooldown_lr` after the cosine has ended."""
    cooldown_lr: float = 1e-5
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    select: Literal["last", "best"] = "last"
    """Keep the last state, or that of the best validation accuracy (ties: lower loss, earlier)."""


TicketMethod = Literal[
    "iterand",
    "edge_popup",
    "dense",
    "quantised",
    "random_mask",
    "random_mask_trained",
    "shuffled_mask",
]


@dataclass(frozen=True, kw_only=True)
class TicketConfig:
    """How a strong lottery ticket is searched for, or which control is run instead.

    `dense` trains the weights normally; `random_mask` leaves a random subnetwork of random weights
    untrained, `random_mask_trained` trains the weights under such a mask, and `shuffled_mask`
    shuffles the masks that a finished search found, layer by layer; `quantised` rounds the weights
    of a finished dense training to a few bits.
    """

    method: TicketMethod = "iterand"
    sparsity: float = 0.5
    """Fraction of the weights removed, s."""
    scope: Literal["layer", "global"] = "layer"
    score: Literal["signed", "magnitude"] = "signed"
    weight_init: Literal["signed_kaiming_constant", "kaiming_uniform", "kaiming_normal"] = (
        "signed_kaiming_constant"
    )
    score_init: Literal["kaiming_uniform", "kaiming_normal"] = "kaiming_uniform"
    rescale: bool = False
    """Multiply the weights' scale by 1/sqrt(1 - s)."""
    dynamic_scale: bool = False
    """Multiply each layer by 1/sqrt(kept share) at every pass."""
    pruned: float = 0.0
    """Share of the weights pruned for good before the search, p; counted in the sparsity."""
    locked: float = 0.0
    """Share of the weights locked into the subnetwork, l; the sparsity is at most 1 - l."""
    allocation: Allocation = "uniform"
    """How the frozen shares spread over the layers."""
    every: int = 300
    """IteRand: iterations between two re-randomisations, K_per."""
    rate: float = 0.1
    """IteRand: probability that a pruned weight is redrawn, r."""
    anneal: float = 0.0
    """Share of training over which the sparsity grows linearly from 0; 0 keeps it constant."""
    bits: int = 4
    """quantised: bits of a weight, 2 to 8."""
    penalty: float = 0.0
    """Weight of the sum of squared scores in the loss."""
    trainable: tuple[str, ...] = ()
    """Patterns of parameter names to leave unmasked and trainable."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a pretrained network is fine-tuned: the method, and what goes with any of them."""

    method: str = "adarand"
    """A name of `regraft.features.METHODS`."""
    weight: float | None = None
    """The method's weight; without it its own default."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the method."""
    ema: float | None = None
    """Decay of a running average of the weights, which is then what is evaluated and kept."""
    mixup: float | None = None
    """alpha of mixup."""
    layer_decay: float = 1.0
    """Factor of the learning rate from a layer to the one below it."""
    head_factor: float = 1.0
    """Learning rate of the classifier over that of the layer below it."""
    freeze_batchnorm: bool = False
    """Keep BatchNorm in evaluation mode."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What is chosen on validation before training, and how much time that may take."""

    seconds: float = 600.0
    """About how long the search may take; the plan that fits is made once, from measured steps."""
    trials: int | None = None
    """Compare this many settings whatever the time, so that the plan is the same everywhere."""
    lr: tuple[float, ...] = ()
    """Learning rates to choose from, the most promising first; none for a grid by optimiser."""
    weight: tuple[float, ...] = ()
    """Weights to choose from; none for a grid around the method's own."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where and how exactly a run computes; the seed of everything but the data split."""

    seed: int = 1
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    threads: int | None = None
    """Threads of one process on the CPU; bit-identical resuming needs it unchanged."""
    compile: bool = False
    checkpoint_seconds: float = 30.0
    """Least time between two checkpoints; 0 writes one after every step."""
    log_every: int = 50
    """Steps between two rows of training metrics; losses are checked as often."""
    eval_every: int = 1
    """Epochs between two evaluations on the validation split."""


_Range = tuple[str, Callable[[Any], bool]]

_AT_LEAST_1: _Range = ("at least 1", lambda v: v >= 1)
_NOT_NEGATIVE: _Range = (
    "a finite number from 0 up",
    lambda v: all(0 <= n < math.inf for n in (v if isinstance(v, tuple) else (v,))),
)
_POSITIVE: _Range = (
    "a finite number above 0",
    lambda v: all(0 < n < math.inf for n in (v if isinstance(v, tuple) else (v,))),
)
_SHARE: _Range = ("a share in [0, 1]", lambda v: 0 <= v <= 1)
_BELOW_1: _Range = ("a number in [0, 1)", lambda v: 0 <= v < 1)

# Written so that NaN, which compares with nothing, fails every one of them.
_RANGES = {
    "lr": _POSITIVE,
    "momentum": _BELOW_1,
    "weight_decay": _NOT_NEGATIVE,
    "epochs": _AT_LEAST_1,
    "batch_size": _AT_LEAST_1,
    "accumulate": _AT_LEAST_1,
    "warmup_epochs": _NOT_NEGATIVE,
    "cooldown_epochs": _NOT_NEGATIVE,
    "cooldown_lr": _NOT_NEGATIVE,
    "label_smoothing": _BELOW_1,
    "clip_norm": _POSITIVE,
    "sparsity": _SHARE,
    "pruned": _SHARE,
    "locked": _SHARE,
    "every": _AT_LEAST_1,
    "rate": _SHARE,
    "anneal": _SHARE,
    "penalty": _NOT_NEGATIVE,
    "width": _POSITIVE,
    "devices": _AT_LEAST_1,
    "ema": _BELOW_1,
    "mixup": _POSITIVE,
    "layer_decay": ("a factor above 0 and at most 1", lambda v: 0 < v <= 1),
    "head_factor": _POSITIVE,
    "weight": _NOT_NEGATIVE,
    "seconds": _POSITIVE,
    "trials": ("at least 2", lambda v: v >= 2),
    "threads": _AT_LEAST_1,
    "checkpoint_seconds": _NOT_NEGATIVE,
    "log_every": _AT_LEAST_1,
    "eval_every": _AT_LEAST_1,
}


def check(*configs: Any) -> None:
    """Refuse numbers that no run can use, before anything is loaded or written.

    Raises:
        InputError: A number of one of the config dataclasses is out of its range or not a number.
    """
    for config in configs:
        for name, value in vars(config).items():
            if value is None or name not in _RANGES:
                continue
            expected, fits = _RANGES[name]
            if not fits(value):
                raise InputError(f"{name}={value!r}: expected {expected}")


def to_dict(config: Any) -> dict[str, Any]:
    """Return the JSON form of a config dataclass, nested ones included."""
    # As it comes back from a file: a tuple that has become a list would look like another config.
    return json.loads(json.dumps(dataclasses.asdict(config)))


def digest(config: Any) -> str:
    """Return 16 hex digits that identify a config (a dataclass or its JSON form)."""
    plain = config if isinstance(config, dict) else to_dict(config)
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
