"""The weights of a merge or an alignment as files, which whatever read the first model can read too."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.checkpoints.model_card import header
from regraft.checkpoints.read import Checkpoint
from regraft.checkpoints.stream import writing
from regraft.files import load_json, write_json
from regraft.jobs.predict.used_images import write_used

from .models import Models

_INDEX = "model.safetensors.index.json"

_CARRIED = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab*", "merges.txt", "spiece.model", "sentencepiece*.model",
    "chat_template*", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
"""What Hugging Face keeps beside the weights of a model."""


def write_whole(
    folder: Path, name: str, state: Mapping[str, Tensor], about: dict[str, Any], models: Models
) -> list[str]:
    """Write a state dict that is in memory; see `write_streamed`."""
    sketch = {k: torch.empty_like(v, device="meta") for k, v in state.items()}
    return _write(folder, name, sketch, state.items(), about, models, models.checkpoints[0])


def write_streamed(
    folder: Path,
    name: str,
    tensors: Iterable[tuple[str, Tensor]],
    about: dict[str, Any],
    models: Models,
    *,
    model: int = 0,
) -> list[str]:
    """Write tensors that come one by one as the file of one of the models is written.

    A tied tensor is stored once, under the name that the model's own file has. For `model.safetensors`
    the shards are those of the model's own files, and a Hugging Face folder's configuration and
    tokenizer are carried over.

    Args:
        folder: The result folder.
        name: Name of the file.
        tensors: Names and tensors.
        about: What the header says the file is of.
        models: The models.
        model: Number of the model whose files are followed, from 0.

    Returns:
        Names of the files.
    """
    own = models.checkpoints[model]
    return _write(folder, name, own.sketch, tensors, about, models, own)


def _write(
    folder: Path,
    name: str,
    sketch: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    about: dict[str, Any],
    models: Models,
    like: Checkpoint,
) -> list[str]:
    once = _stored_once(like, models.ties)
    files = {k: name for k in sketch if k in once}
    whole = name == "model.safetensors"
    if whole and len({file for file, _ in like.where.values()}) > 1:
        files = {k: str(getattr(like.where[k][0], "name", name)) for k in files}
    metadata = header(about)
    with contextlib.ExitStack() as stack:
        opened = {
            file: stack.enter_context(
                writing(
                    folder / file, {k: sketch[k] for k, f in files.items() if f == file}, metadata
                )
            )
            for file in sorted(set(files.values()))
        }
        for key, tensor in tensors:
            if key in files:
                opened[files[key]].put(key, tensor)
    written = list(opened)
    if written != [name]:
        total = sum(sketch[k].numel() * sketch[k].element_size() for k in files)
        index = {"metadata": {"total_size": total}, "weight_map": files}
        write_json(folder / _INDEX, index)
        written.append(_INDEX)
    written += write_used(
        folder, (own.splits for own in models.data), (own.path for own in models.checkpoints)
    )
    return [*written, *(_carry_over(like.path, folder) if whole else ())]


def _stored_once(like: Checkpoint, ties: Iterable[Iterable[str]]) -> set[str]:
    """Return the names to store: of a tied tensor the one that its own file has, else the first."""
    names: dict[Any, str] = {}
    for name, place in like.where.items():
        if place not in names or place[1] == name:
            names[place] = name
    kept = set(names.values())
    for group in ties:
        there = [name for name in group if name in kept]
        kept -= set(there[1:])
    return kept


def _carry_over(path: Path, folder: Path) -> list[str]:
    """Copy what Hugging Face keeps beside the weights of the first model, where it is such a folder."""
    source = path if path.is_dir() else path.parent
    try:
        config = load_json(source / "config.json")
    except (OSError, ValueError):
        return []
    if not isinstance(config, dict) or not {"model_type", "architectures"} & set(config):
        return []
    carried = []
    for file in sorted({file for pattern in _CARRIED for file in source.glob(pattern)}):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
            carried.append(file.name)
    return carried
