"""How generated images regularise a network: the loss, how samples are chosen, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .check import AT_LEAST_1, AT_LEAST_2, BELOW_1, NOT_NEGATIVE, POSITIVE

PseudoLoss = Literal["pcr", "ce", "strong_ce", "head", "self_training"]
Selection = Literal["uniform", "finder", "gradient", "entropy"]
Distance = Literal["normalised", "squared"]
Branch = Literal["both", "strong", "clean"]
Hypergradient = Literal["exact", "finite"]
FinderKind = Literal["shared", "conditional", "per_class"]
NormPolicy = Literal["own", "update", "running"]


@dataclass(frozen=True, kw_only=True)
class MGRConfig:
    """A loss on generated images, and how these are chosen.

    The defaults are MGR with the exact hypergradient; with `select` `uniform` it is PCR alone.
    """

    loss: PseudoLoss = "pcr"
    """`pcr`: consistency of features; `ce`: cross-entropy on generated images (GDA); `strong_ce`: on
    strong views of them; `head`: with a classifier of its own; `self_training`: without labels (UDA)."""
    select: Selection = "finder"
    """`uniform` latents; latents moved by a `finder`; the best of a pool by `gradient` or `entropy`."""
    weight: Annotated[float, NOT_NEGATIVE.of("--generator-weight")] = 1.0
    """lambda."""
    batch: Annotated[int | None, AT_LEAST_2] = None
    """Generated images a step; without it as many as real ones."""
    distance: Distance = "normalised"
    """`squared` sums over the features; `normalised` does so for features of length 1."""
    gradient: Branch = "both"
    """Which branch of the consistency has a gradient to the weights."""
    hypergradient: Hypergradient = "exact"
    """`finite` is the difference of two gradients that the paper takes."""
    epsilon: Annotated[float, POSITIVE] = 0.01
    """Length of the step of `finite`, over the norm of the validation gradient."""
    every: Annotated[int, AT_LEAST_1] = 4
    """Steps between two updates of the finder, or two choices from a pool."""
    warmup: Annotated[int, NOT_NEGATIVE] = 0
    """Steps with uniform latents before the first."""
    meta_batch: Annotated[int | None, AT_LEAST_2] = None
    """Generated and real images of an update of the finder; without it as many as of a step."""
    finder: FinderKind = "shared"
    """One for all classes, one that knows the class, or an affine map for each class."""
    finder_lr: Annotated[float, NOT_NEGATIVE] = 1e-3
    """Adam's rate for the finder."""
    finder_width: Annotated[int, AT_LEAST_1] = 64
    """Hidden units of the finder."""
    folds: Annotated[int | None, AT_LEAST_2] = None
    """Folds of the training images that take turns at validation; without it 5, or as many as the
    smallest class has images."""
    unroll_lr: Annotated[float, POSITIVE] = 0.05
    """Learning rate of the unrolled step, that of training."""
    validation_batches: Annotated[int, AT_LEAST_1] = 1
    """Batches of validation images a meta step."""
    average: Annotated[float | None, BELOW_1] = None
    """Take the Jacobian at a running average of the weights with this decay, for longer horizons."""
    damping: Annotated[float | None, POSITIVE] = None
    """Divide the validation gradient by a running diagonal Fisher plus this share of its mean."""
    copies: bool = False
    """Train a copy of the network for each fold, which never meets that fold (cross-fitting)."""
    pool: Annotated[int, AT_LEAST_2] = 8
    """Candidates for each image of a batch, of which `pool_share` are kept."""
    pool_share: Annotated[float, POSITIVE] = 0.25
    """Share of the pool that is kept, the best of each class."""
    draws: Annotated[int, AT_LEAST_1] = 1
    """Views of each candidate that its score is the mean over."""
    pairs: bool = False
    """Choose pairs of image and view and apply the same view again, instead of images alone."""
    norm: NormPolicy = "own"
    """BatchNorm on generated images: their own statistics, which are not kept; `update`: kept too;
    `running`: the running ones."""
    chunk: Annotated[int | None, AT_LEAST_1] = None
    """Images that are generated with a graph at a time, which bounds the generator's memory."""
    bf16: bool = False
    """Generate, and pass through the network, under bfloat16 autocast, also where training is not (with
    `--precision bf16-mixed` it is anyway). Views, distances and meta steps stay in float32."""
