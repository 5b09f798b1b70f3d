"""From a `SourceConfig` to a source: somebody's factory, a generator trained here, a bank, or images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from regraft.checkpoints.read import fit_names, read_checkpoint
from regraft.config import DataConfig, SourceConfig
from regraft.config.generate import SOURCES
from regraft.data import known_names, load
from regraft.data.memory import in_memory
from regraft.errors import InputError
from regraft.machine import expanded
from regraft.models.external import call, imported

from .bank import MANIFEST, CachedBank
from .images import ImageSource
from .module import ModuleSource
from .own import read_generator
from .pipeline import PipelineSource
from .shards import read_shards, shards_of
from .source import Source

OWN = "generator.safetensors"
PIPELINE = "model_index.json"


def load_source(config: SourceConfig, *, device: torch.device | str | None = None) -> Source:
    """Return the source that a config names.

    It is, in this order: `package.module:factory`, with the file `weights`; a bank that `regraft synth
    make` wrote; a generator that was trained here, or the folder of its run; a diffusers pipeline in a
    folder; tar shards of images; a known set or a folder of images, one subfolder a class.

    Args:
        config: Which, and what one batch of it does not tell.
        device: Where to compute.

    Raises:
        InputError: There is nothing of this name, or it is damaged, or it does not fit what is said of it.
        MissingExtraError: diffusers is not installed.
    """
    name, path = config.name, expanded(config.name)
    if ":" in name and not path.exists():
        return _of_factory(config, device)
    if config.weights is not None:
        raise InputError(
            f"weights {config.weights} are of a factory and {name} is none: name package.module:factory"
        )
    if (path / MANIFEST).exists():
        return CachedBank(path, device=device)
    for file in (path, path / OWN):
        if file.is_file() and file.suffix == ".safetensors":
            return read_generator(file, device=device)
    if (path / PIPELINE).exists():
        return PipelineSource.from_folder(path, config, device=device)
    shards = shards_of(path)
    if shards:
        size = None if config.image_shape is None else config.image_shape[1]
        images, names = read_shards(shards, image_size=size)
        source = ImageSource(images, device=device)
        source.class_names = names
        return source
    if name in known_names() or path.is_dir():
        size = None if config.image_shape is None else config.image_shape[1]
        splits = load(DataConfig(name=name, validation=0.0, image_size=size))
        source = ImageSource(in_memory(splits.train, f"{name} as a source"), device=device)
        source.class_names = splits.classes
        return source
    raise InputError(f"source {name!r} is no factory, folder or file: expected {SOURCES}")


def makes_images(folder: Path) -> bool:
    """Whether a folder is a generator's, a bank or tar shards, and not one of pictures."""
    return any((folder / n).exists() for n in (MANIFEST, OWN, PIPELINE)) or bool(shards_of(folder))


def _of_factory(config: SourceConfig, device: torch.device | str | None) -> ModuleSource:
    made = imported(config.name, "generator")
    module = made if isinstance(made, nn.Module) else call(config.name, made, config.options)
    notes: list[str] = []
    if config.weights is None:
        notes.append("no weights were loaded: it makes what its factory made it")
    else:
        # Whatever device they were saved on, they are read to the CPU.
        try:
            stored = fit_names(read_checkpoint(config.weights), module)
        except InputError as error:
            raise InputError(f"the weights do not fit {config.name}: {error}") from error
        module.load_state_dict(dict(stored))
        notes += stored.notes
    options: dict[str, Any] = {
        key: getattr(config, key)
        for key in ("classes", "latent", "method", "labels", "pixels", "image_shape")
    }
    source = ModuleSource(module, **options, device=device)
    source.notes += notes
    return source
