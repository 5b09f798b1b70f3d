"""Which images or graph, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .check import AT_LEAST_1, BELOW_1, FINITE

Augmentation = Literal["none", "flip", "crop", "crop-flip", "resized-crop-flip"]
Normalisation = Literal["own", "none", "imagenet"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, or which graph, and how they are split."""

    name: str = "digits"
    """A known set (`digits`, `mnist`, `fashion_mnist`, ...) or the path of an image folder."""
    root: str | None = None
    """Folder of the known sets; without it `REGRAFT_DATA`, then `~/.cache/regraft/data`."""
    download: bool = True
    """Fetch a missing set where a network exists."""
    train_size: Annotated[int | None, AT_LEAST_1] = None
    """Keep this many training images, stratified by class."""
    shots: Annotated[int | None, AT_LEAST_1] = None
    """Keep this many training images of each class."""
    validation: Annotated[float, BELOW_1] = 0.1
    """Share of the training images held out for validation, stratified by class."""
    split_seed: int = 777
    augment: Augmentation = "none"
    image_size: Annotated[int | None, AT_LEAST_1] = None
    """Resize to this square, in pixels; an image folder without it keeps the side of its
    images where all have one of at most 224, and takes 224 otherwise."""
    channels: Annotated[int | None, AT_LEAST_1] = None
    """Make images grey (1) or of three channels (3)."""
    rotate: Annotated[float, FINITE] = 0.0
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
