"""The file of a generator that was trained here, and the source that it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from regraft.checkpoints.read import fit_names, read_checkpoint
from regraft.errors import InputError
from regraft.files import parse_json, reading
from regraft.models.bounded import bounded

from .module import ModuleSource
from .networks import make_generator

KEY = "regraft.generator"
"""Entry of a safetensors header that says how the generator is built."""

_MOST = {"pixels": 1 << 18, "classes": 1 << 14, "option": 1 << 14, "steps": 1 << 10}
"""Largest numbers of a header: of an image's pixels over all channels, of classes, of an option."""


def read_generator(path: Path, *, device: torch.device | str | None = None) -> ModuleSource:
    """Return a generator that was trained here as a source.

    Its header is bounded, and the generator that it names is compared with the tensors of the file
    before memory is spent on it.

    Raises:
        InputError: The file is missing, damaged, changed, or of something else.
    """
    stored = read_checkpoint(path)
    if KEY not in stored.metadata:
        raise InputError(f"{path} is no generator of regraft's: its header does not say which")
    with reading(path, "train the generator again, or copy its file again"):
        about = parse_json(stored.metadata[KEY])
        shape = tuple(_whole(v, _MOST["pixels"]) for v in about["image_shape"])
        classes = tuple(map(str, about["classes"]))
        if len(shape) != 3 or math.prod(shape) > _MOST["pixels"]:
            raise ValueError(f"images of {str(about['image_shape'])[:60]}")
        _whole(len(classes), _MOST["classes"])
        options = {
            str(k): _whole(v, _MOST["steps" if k == "steps" else "option"])
            for k, v in about["options"].items()
        }
        what: Any = (str(about["kind"]), shape, len(classes))
        with torch.device("meta"), bounded():
            outline = make_generator(*what, **options)
        fitted = fit_names(stored, outline)
        with bounded(sum(t.numel() for t in stored.sketch.values())):
            generator = make_generator(*what, **options)
        generator.load_state_dict(dict(fitted))
    source = ModuleSource(generator, pixels="[0,1]", labels="onehot", device=device)
    source.class_names = classes
    return source


def _whole(value: Any, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{str(value)[:60]} where a whole number from 1 to {most} is expected")
    return value
