"""What tells whether a finished folder is of the same files, images and settings."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regraft.config import DataConfig
from regraft.digests import listing_digest
from regraft.errors import InputError
from regraft.jobs.base import to_json
from regraft.machine import expanded

from .config import AlignConfig

# Where and how often, which change no number.
_NO_NUMBERS = (
    "runtime.accelerator", "runtime.devices", "runtime.threads", "runtime.compile",
    "runtime.checkpoint_seconds", "runtime.log_every", "runtime.eval_every",
)  # fmt: skip


def identity(kind: str, config: AlignConfig) -> dict[str, Any]:
    """Return what determines the result, as JSON: the settings, and the files by size and time.

    Folders of images are told apart by their files; where known sets lie changes no number.
    """
    settings = _flat(json.loads(json.dumps(asdict(config), default=str)))
    settings["data"] = [to_json(data) for data in config.data]
    base: Path | None = getattr(config, "base", None)
    files = [*config.checkpoints, *(p for p in (base, config.spec, *config.ste.condensed) if p)]
    root = config.data[0].root if config.data else None
    return {
        "kind": kind,
        **{k: v for k, v in settings.items() if k not in _NO_NUMBERS},
        "files": [stamp(Path(path)) for path in files],
        **images_of([data.name for data in config.data], root),
    }


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under names with dots, so that a difference is named closely."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def stamp(path: Path) -> list[Any]:
    """Return what tells whether what is read of a file or a folder is still the same.

    Of a folder that is its tensors, with the index of shards or of a recorded trajectory; of an index,
    the shards beside it as well.
    """
    files = [path]
    if path.is_dir():
        files = [path / "index.json", *_tensors(path)]
    elif path.name.endswith(".index.json"):
        files += _tensors(path.parent)
    return [[f.name, s.st_size, s.st_mtime_ns] for f in files if f.is_file() for s in [f.stat()]]


def images_of(data: Sequence[str], root: str | None) -> dict[str, list[str | None]]:
    """Return, as `images`, what tells whether folders of images still hold the same.

    That is a digest of the names, sizes and times of the files of each folder, and None for a known
    set. Where all are known sets there is nothing to tell.
    """
    # A command line's own modules load no torch.
    from regraft.data import graph_names, known_names
    from regraft.data.load import folder_of

    digests: list[str | None] = []
    for name in data:
        folder = None
        if name not in (*known_names(), *graph_names()):
            with contextlib.suppress(InputError):  # whoever loads it tells of one that is not there
                folder = expanded(folder_of(DataConfig(name=name, root=root)))
        digests.append(None if folder is None or not folder.is_dir() else _images(folder))
    return {"images": digests} if any(digests) else {}


def _images(folder: Path) -> str:
    from regraft.data.folder import image_files

    return listing_digest(folder, image_files(folder))


def _tensors(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors*"))
