"""What a file of weights says it is of: the header that Regraft writes, and reads without trusting it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.config import ModelConfig
from regraft.errors import InputError
from regraft.files import parse_json

KEY = "regraft.model"
"""Entry of a safetensors header that holds the card as JSON."""
EITHER = " | "
"""Between the names of a row that the models of a merge call differently."""

_FETCHING = re.compile(
    r"pretrained|weights|checkpoint|cache|cfg|config|dir$|path|file|url|hub|repo|token$|revision|trust|"
    r"^model_name$|^scriptable$|^exportable$|^no_jit$"
)
"""Names of options that choose code, weights, a hub, a folder or a file, whatever their value."""

_HARMLESS = frozenset(("init_weights", "cls_token", "class_token", "num_reg_tokens", "reg_tokens"))
"""Names that look like one of those and are not."""

_BROUGHT = re.compile(r"pretrained|^weights|checkpoint|^cache_dir$|^hf_hub_id$")
"""Names that say where weights come from: the file brings them, so these are left out."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_WORD = re.compile(r"(?!.*\.\.)[A-Za-z0-9_+-][A-Za-z0-9_+.-]{0,63}|")
_LARGEST = 1 << 20


@dataclass(frozen=True)
class ModelCard:
    """What a model file is of, checked: how to build the network and what to feed it.

    Attributes:
        model: The network, with the options that a file may choose.
        input: `channels` and `image_size`, or `graph` and `features`.
        classes: Names of the outputs, in their order.
    """

    model: ModelConfig
    input: Mapping[str, Any]
    classes: tuple[str, ...]

    @property
    def shape(self) -> dict[str, Any]:
        """What `regraft.models.build` takes beside the network."""
        return {"num_classes": len(self.classes), **self.input}

    @classmethod
    def read(cls, about: Mapping[str, Any], path: Path) -> ModelCard:
        """Return the card that a header's JSON holds.

        Args:
            about: The JSON, as `read_header` returns it.
            path: The file, for errors.

        Raises:
            InputError: Something is missing, or is not what it should be.
        """
        missing = [k for k in ("model", "classes", "input") if k not in about]
        if missing:
            option = missing[0] if missing[0] != "input" else "image-size"
            raise InputError(
                f"{path} does not say which {missing[0]} it is of: say it with `regraft ticket pack "
                f"{path} --out NEW.ticket --{option} ...`, or fill the model in a program, with "
                "regraft.tickets.fill(model, load_ticket(path))"
            )
        classes, shape = about["classes"], about["input"]
        try:
            model = model_of(about["model"])
            if not isinstance(classes, list) or not all(isinstance(k, str) for k in classes):
                raise TypeError(f"the classes are {str(classes)[:100]}")
            graph = shape.get("graph") is True
            sizes = {"features"} if graph else {"channels", "image_size"}
            if shape.keys() != (sizes | {"graph"} if graph else sizes) or not all(
                type(shape[k]) is int and 0 < shape[k] <= _LARGEST for k in sizes
            ):
                raise TypeError(f"the input is {str(shape)[:100]}")
        except (TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"{path} says what it is of in a way this version does not understand ({error}): pack "
                "it again with --model"
            ) from error
        return cls(model, dict(shape), tuple(classes))


def header(about: Mapping[str, Any]) -> dict[str, str]:
    """Return the safetensors header of a model file; other tools read its tensors as torch's.

    Args:
        about: What the file is of, as JSON: `model`, `input`, `classes`, `mean`, `std`, ...
    """
    return {"format": "pt", KEY: json.dumps(about)}


def read_header(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what a safetensors header says the file is of; empty for files of others."""
    try:
        about = parse_json(metadata.get(KEY, "{}"))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def model_of(stored: Any) -> ModelConfig:
    """Return the network that a file names, with the options that a file may choose.

    Raises:
        TypeError: It is no JSON of a network.
    """
    if not isinstance(stored, Mapping) or not isinstance(stored.get("name"), str):
        raise TypeError(f"the model is {str(stored)[:100]}")
    options, width = stored.get("options", {}), stored.get("width", 1.0)
    if set(stored) - {"name", "options", "width"} or not isinstance(options, Mapping):
        raise TypeError(f"the model is {str(stored)[:100]}")
    if type(width) not in (int, float) or not 0 < width < math.inf:
        raise TypeError(f"the width is {str(width)[:100]}")
    kept = allowed_options(options)
    if options.get("weights") and stored["name"] == "torchvision/inception_v3":
        kept.setdefault("transform_input", True)  # what the weights would have set
    return ModelConfig(name=stored["name"], width=float(width), options=kept)


def is_elsewhere(name: str) -> bool:
    """Whether a name points to code or a configuration outside Regraft's own dependencies."""
    # timm resolves a colon or a slash: into a hub, which it reaches for, or into a local folder.
    return ":" in name or "/" in name.removeprefix("timm/").removeprefix("torchvision/")


def allowed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a file that may reach the factory of a network.

    A file brings all weights along, so it may choose the form of a network and nothing else: numbers,
    switches, short words, and lists and dictionaries of these, under names that choose no weights, hub,
    folder or file. Options that only say where weights come from are left out.

    Raises:
        TypeError: An option is of another kind. Without it the network would be another one.
    """
    kept = {name: value for name, value in options.items() if not _BROUGHT.search(str(name))}
    for name, value in kept.items():
        if not _is_allowed(name) or not _is_plain(value):
            raise TypeError(
                f"the option {str(name)[:40]!a} has a value that no file may choose: "
                f"{str(value)[:60]!a}"
            )
    return kept


def _is_allowed(name: Any) -> bool:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return False
    return name in _HARMLESS or not _FETCHING.search(name)


def _is_plain(value: Any, depth: int = 0) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) <= _LARGEST
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if depth == 3 or not isinstance(value, list | tuple | dict) or len(value) > 64:
        return False
    if isinstance(value, dict):
        return all(_is_allowed(k) and _is_plain(v, depth + 1) for k, v in value.items())
    return all(_is_plain(item, depth + 1) for item in value)
