"""Former names of `config` and `identity`, until jobs/transfer uses those."""

from __future__ import annotations

import json
from typing import Any

from regraft.config import DataConfig, ModelConfig, RuntimeConfig
from regraft.errors import InputError

from .config import AlignConfig, check_moments
from .identity import images_of, stamp

__all__ = ["Alignment", "check_moments", "images_of", "stamp"]


class Alignment(AlignConfig):
    """An `AlignConfig` from the flat options of a command line."""

    def __init__(self, **options: Any) -> None:
        known = {k: options[k] for k in ("checkpoints", "spec") if k in options}
        for name in ("image_size", "channels", "mean", "std"):
            if name in options:
                known[name] = options[name]
        places = {"data_root": "root", "download": "download", "unreadable": "unreadable"}
        data = {new: options[old] for old, new in places.items() if old in options}
        runtime = {k: options[k] for k in ("seed", "accelerator", "threads") if k in options}
        if options.get("model") is not None:
            more = model_options(options.get("model_options", "{}"))
            width = options.get("width", 1.0)
            known["model"] = ModelConfig(name=options["model"], width=width, options=more)
        super().__init__(
            data=tuple(DataConfig(name=name, **data) for name in options.get("data", ())),
            runtime=RuntimeConfig(**runtime),
            **known,
        )


def model_options(text: str) -> dict[str, Any]:
    """Return --model-options.

    Raises:
        InputError: It is no JSON object.
    """
    try:
        options = json.loads(text)
    except ValueError as error:
        raise InputError(f"--model-options is no JSON object: {error}") from error
    if not isinstance(options, dict):
        raise InputError("--model-options is no JSON object: write e.g. '{\"depth\": 3}'")
    return options
