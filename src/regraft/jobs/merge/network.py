"""The network that checkpoints are of: which it is, what size fits, and what it is called with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from regraft.checkpoints.model_card import is_elsewhere, model_of
from regraft.checkpoints.read import Checkpoint, fit_names
from regraft.config import ModelConfig, check
from regraft.data import Splits
from regraft.errors import InputError
from regraft.models import build
from regraft.models.bounded import bounded
from regraft.models.external import call, imported

from .classifiers import head_of, rows_of
from .config import AlignConfig
from .data import said_size

# Images that a network is tried with where nothing says what it takes.
_SHAPES = ((3, 224), (1, 28), (3, 32), (1, 32), (3, 28), (3, 64), (3, 96), (3, 128), (1, 8))


def network_config(config: AlignConfig, about: dict[str, Any]) -> ModelConfig:
    """Return which network --model names, or the first checkpoint says it is of.

    Raises:
        InputError: Neither does, or the checkpoint names code outside of it.
    """
    if config.model is not None:
        check(config.model)
        return config.model
    path, said = config.checkpoints[0], about.get("model")
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        raise InputError(
            f"{path} does not say which network it is of: name it with --model, e.g. timm/resnet18, "
            "torchvision/resnet18 or package.module:factory"
        )
    name = said["name"]
    if is_elsewhere(name):
        raise InputError(
            f"{path} names {name}, which is code outside the checkpoint: pass --model {name} if you "
            "trust it"
        )
    try:
        return model_of(said)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path} says what it is of in a way this version does not understand ({error}): say it "
            "with --model"
        ) from error


def fitting(
    config: AlignConfig,
    model: ModelConfig,
    about: dict[str, Any],
    splits: list[Splits],
    first: Checkpoint,
) -> dict[str, Any]:
    """Return the classes, channels and image size with which a network fits the first checkpoint.

    Raises:
        InputError: None does.
    """
    try:
        return _first_fit(model, _shapes(config, about, splits), first, config.num_classes)
    except InputError as error:
        if splits or ":" not in model.name:
            raise
        raise InputError(
            f"{error}; a network that takes something else than images is traced with --inputs "
            "package.module:function"
        ) from error


def _shapes(
    config: AlignConfig, about: dict[str, Any], splits: list[Splits]
) -> list[tuple[int, int]]:
    """Return the (channels, image size) to try, the most likely first."""
    said = said_size(about)
    if splits:
        said = {"channels": splits[0].channels, "image_size": splits[0].image_size}
    own = {"channels": config.channels, "image_size": config.image_size}
    said |= {k: v for k, v in own.items() if v is not None}
    tried = [(said.get("channels", c), said.get("image_size", s)) for c, s in _SHAPES]
    return list(dict.fromkeys(tried))


def _first_fit(
    config: ModelConfig,
    shapes: Sequence[tuple[int, int]],
    checkpoint: Checkpoint,
    classes: int | None,
) -> dict[str, Any]:
    """Return the classes, channels and image size with which a network fits a checkpoint.

    Raises:
        InputError: None does; what is wrong with the most likely one is said.
    """
    problem: InputError | None = None
    for channels, size in shapes:
        shape = {"channels": channels, "image_size": size, "num_classes": classes or 2}
        try:
            sketch = sketched(config, shape)
            head = head_of(sketch, shape)
            if classes is None and head is not None:
                shape["num_classes"] = rows_of(checkpoint, head) or 2
                sketch = sketched(config, shape)
            fit_names(checkpoint, sketch)
            return shape
        except InputError as error:
            if problem is None and str(checkpoint.path) in str(error):
                form = f"{channels}x{size}x{size} and {shape['num_classes']} classes"
                problem = InputError(
                    f"{error} ({config.name} was built for images of {form}: --channels, "
                    "--image-size, --num-classes or --model says another)"
                )
            problem = problem or error
    raise problem or InputError(f"{checkpoint.path} fits no {config.name}")


def made(config: ModelConfig, shape: dict[str, Any]) -> nn.Module:
    """Build a network for images, or where `shape` is empty what its factory makes of its options."""
    if shape:
        return build(config, **shape)
    return call(config.name, imported(config.name), config.options)


def sketched(config: ModelConfig, shape: dict[str, Any]) -> nn.Module:
    """Build a network without memory for its weights, where that can be done; see `made`."""
    try:
        with torch.device("meta"), bounded():
            return made(config, shape)
    except (InputError, RuntimeError, NotImplementedError):
        with bounded():
            return made(config, shape)  # which says what is wrong, if anything is


def own_inputs(target: str) -> Any:
    """Return what a network that takes no images is called with.

    Args:
        target: `package.module:function`, which is called without arguments and returns a tensor, a
            tuple of positional arguments, or a dict of keyword arguments.

    Raises:
        InputError: It cannot be imported, fails, or returns nothing.
    """
    function = imported(target, "inputs")
    try:
        inputs = function()
    # It is somebody else's code, which may raise anything.
    except Exception as error:
        raise InputError(
            f"--inputs {target} could not be called ({type(error).__name__}: {error}): it takes no "
            "arguments and returns what the network is called with"
        ) from error
    if inputs is None:
        raise InputError(
            f"--inputs {target} returned None: expected a tensor, a tuple, or a dict of keyword "
            "arguments"
        )
    return inputs
