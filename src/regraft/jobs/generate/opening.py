"""From what a user calls a generator to a `Source`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from regraft.checkpoints.read import fit_names, read_checkpoint
from regraft.config import DataConfig, SourceConfig
from regraft.data import ImageSet, load
from regraft.errors import InputError
from regraft.generators.sources import ImageSource, ModuleSource, Source
from regraft.generators.sources.own import read_generator
from regraft.models.external import call, imported

_FILE = "generator.safetensors"


def open_source(config: SourceConfig, *, device: torch.device | str | None = None) -> Source:
    """Return the source that a config names.

    `package.module:factory`, importable also from the current folder, is called with `options` and loaded
    with `weights`; a file or folder of a generator that was trained here is read; any other folder is one
    of images, one subfolder a class, which stand in for generated ones.

    Args:
        config: Which generator.
        device: Where it computes.

    Raises:
        InputError: There is no such generator, or its weights do not fit.
    """
    path = Path(config.name)
    if path.is_dir() and (path / _FILE).is_file():
        path /= _FILE
    if path.is_file():
        return read_generator(path, device=device)
    if path.is_dir():
        images = load(DataConfig(name=str(path), validation=0.0)).train
        if not isinstance(images, ImageSet):
            raise InputError(
                f"--generator {config.name}: its images do not fit into memory; give smaller ones, or fewer"
            )
        return ImageSource(images, device=device)
    if ":" not in config.name:
        raise InputError(
            f"--generator {config.name}: neither a folder nor a file; expected a generator that was "
            "trained here, a folder of images, or package.module:factory"
        )
    return _module(config, device)


def _module(config: SourceConfig, device: torch.device | str | None) -> Source:
    made = imported(config.name, "generator")
    module = made if isinstance(made, nn.Module) else call(config.name, made, config.options)
    if config.weights is not None:
        _load(module, config.weights)
    image_shape = config.image_shape
    return ModuleSource(
        module,
        classes=config.classes,
        latent=config.latent,
        method=config.method,
        labels=config.labels,
        pixels=config.pixels,
        image_shape=None
        if image_shape is None
        else (image_shape[0], image_shape[1], image_shape[2]),
        device=device,
    )


def _load(module: nn.Module, weights: str) -> None:
    stored = read_checkpoint(Path(weights))
    try:
        module.load_state_dict(dict(fit_names(stored, module)))
    except InputError as error:
        raise InputError(f"--generator-weights are not of this generator: {error}") from error
