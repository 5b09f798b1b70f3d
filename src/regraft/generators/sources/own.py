"""The file of a generator that was trained here, and the source that it is."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from regraft.errors import InputError

from .module import ModuleSource
from .networks import make_generator

KEY = "regraft.generator"
"""Entry of a safetensors header that says how the generator is built."""


def read_generator(path: Path, *, device: torch.device | str | None = None) -> ModuleSource:
    """Return a generator that was trained here as a source.

    Raises:
        InputError: The file is missing, damaged, or of something else.
    """
    import safetensors
    from safetensors.torch import load_file

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
        if text is None:
            raise InputError(f"{path} is no generator of regraft's: its header does not say which")
        about = json.loads(text)
        channels, height, width = (int(v) for v in about["image_shape"])
        options = {str(k): int(v) for k, v in about["options"].items()}
        generator = make_generator(
            about["kind"], (channels, height, width), len(about["classes"]), **options
        )
        generator.load_state_dict(load_file(path))
    except InputError:
        raise
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as a generator ({error})") from error
    except RuntimeError as error:
        raise InputError(f"the weights of {path} do not fit the generator that it names") from error
    source = ModuleSource(generator, pixels="[0,1]", labels="onehot", device=device)
    source.class_names = tuple(map(str, about["classes"]))
    return source
