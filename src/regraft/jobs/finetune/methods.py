"""The method of a fine-tuning, from its config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from regraft.config import FinetuneConfig
from regraft.errors import InputError
from regraft.features import METHODS, Method
from regraft.features import build as build_method
from regraft.features.registry import AUTO, COMPARED


def make_method(
    config: FinetuneConfig, weight: float | None, seed: int, source: nn.Module | None = None
) -> Method:
    """Return the method of a config, at another weight where one is named.

    Raises:
        InputError: An unknown method or option, or no source classifier where one is needed.
    """
    options: dict[str, Any] = {"seed": seed, **config.options}
    if weight is None:
        weight = config.weight
    if weight is not None:
        options["weight"] = weight
    if needs_source_head(config) and "source_head" not in options:
        if source is None:
            raise InputError(
                f"method {config.method!r} needs the classifier of the source: give --checkpoint with a "
                "classifier in it, or --pretrained"
            )
        options["source_head"] = source
    return build_method(config.method, **options)


def needs_source_head(config: FinetuneConfig) -> bool:
    """Whether a method takes the classifier of the source; False for one that there is not."""
    return config.method in METHODS and METHODS[config.method].needs_source_head


def needs_pretrained(config: FinetuneConfig) -> bool:
    """Whether a method, as its options have it, means nothing for random weights."""
    if needs_source_head(config):
        return True
    if config.method == AUTO:
        return any(METHODS[name].needs_pretrained for name in COMPARED)
    return build_method(config.method, **config.options).needs_pretrained


def has_weight(name: str) -> bool:
    """Whether a method has a weight to choose."""
    return "weight" in _parameters(name)


def own_weight(config: FinetuneConfig) -> tuple[float, bool]:
    """Return a method's own weight, and whether it is relative to the scale of the features."""
    parameters = _parameters(config.method)
    default = parameters["normalise"].default if "normalise" in parameters else False
    return parameters["weight"].default, bool(config.options.get("normalise", default))


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(METHODS[name]).parameters
