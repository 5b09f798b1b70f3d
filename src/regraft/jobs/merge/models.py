"""Checkpoints and the network they are of, made to fit each other and the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from regraft.checkpoints.names import unwrapped
from regraft.checkpoints.read import (
    Checkpoint,
    check_alike,
    check_finite,
    check_tied,
    fit_names,
    read_checkpoint,
    tied_names,
)
from regraft.config import ModelConfig
from regraft.data import Splits
from regraft.errors import InputError
from regraft.jobs.predict.used_images import Seen
from regraft.symmetry.merge.connectivity import Kept, buffer_names
from regraft.symmetry.merge.heads import Head

from .classifiers import class_names, head_of, one_size, rows_of
from .config import AlignConfig
from .data import (
    Data,
    check_one_form,
    distinct,
    load_all,
    normalised_notes,
    prepared,
    prepared_apart,
)
from .labels import BY_NAME, Labels
from .network import fitting, made, network_config, own_inputs, sketched
from .union import Together


@dataclass(eq=False)
class Models:
    """Checkpoints of one architecture, their network and the data, made to fit each other.

    Attributes:
        checkpoints: The models' checkpoints under the network's names; the base last, if any.
        states: Their state dicts, views of the files; classifiers are widened where they differ.
        has_base: Whether the last is a base model.
        config: What the network is; None where only tensors are dealt with.
        shape: Its `num_classes`, `channels` and `image_size`.
        model: The network, or None.
        head: Its classifier, or None where it has none.
        data: Data sets in their order, as the classifier of the merged network sees them.
        apart: Where classifiers are kept apart: each model's data set as that model sees it.
        names: Names of each model's classes, where they are known.
        classes: The union of the classes, where the classifiers were widened to it.
        counts: Rows of each model's own classifier.
        device: Where what is done with data is computed.
        about: What the first checkpoint says of itself.
        notes: What the user should know.
        inputs: What the network is called with, where that is not images.
        ties: Names of each parameter of the network that has several.
    """

    checkpoints: list[Checkpoint]
    states: list[dict[str, Tensor]]
    has_base: bool
    config: ModelConfig | None
    shape: dict[str, Any]
    model: Any
    head: Head | None
    data: list[Data]
    names: list[list[str]] | None
    classes: list[str] | None
    counts: list[int]
    device: Any
    about: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    inputs: Any = None
    apart: list[Data] = field(default_factory=list)
    ties: list[list[str]] = field(default_factory=list)
    _kept: dict[tuple[int, ...], Kept] = field(default_factory=dict)

    @property
    def models(self) -> int:
        """Number of models, the base not counted."""
        return len(self.states) - self.has_base

    @property
    def known(self) -> list[list[int]] | None:
        """Return the rows of a union's classes that each model knows of its own, None without one."""
        if self.classes is None or self.names is None:
            return None
        return [[self.classes.index(name) for name in own] for own in self.names]

    @cached_property
    def buffers(self) -> tuple[str, ...]:
        """Names of the tensors that are no parameters, as far as a network tells."""
        return () if self.model is None else buffer_names(self.model)

    @cached_property
    def example(self) -> Any:
        """What to trace the network with: its own inputs, or images [2, C, H, W]."""
        if self.inputs is not None:
            move = (lambda t: t.to(self.device)) if self.device.type != "cpu" else (lambda t: t)
            return _pytree.tree_map_only(torch.Tensor, move, self.inputs)
        size = self.shape["image_size"]
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, self.shape["channels"], size, size, generator=generator)
        return images.to(self.device)

    def statistics(self, limit: int, size: int, seed: int) -> Kept:
        """Return batches of at most `limit` training images of every data set, read once."""
        key = (limit, size, seed)
        if key not in self._kept:
            options: dict[str, Any] = {"limit": limit, "size": size, "seed": seed, "shuffle": True}
            parts = [d.batches(d.splits.train, self.device, **options) for d in self._sets()]
            self._kept[key] = Kept(Together(parts, self._sizes(limit), size))
        return self._kept[key]

    def images_of(self, limit: int) -> int:
        """Return how many images the batches of `statistics` hold."""
        return sum(self._sizes(limit))

    def _sets(self) -> list[Data]:
        return distinct(self.apart or self.data, lambda data: data.images)

    def _sizes(self, limit: int) -> list[int]:
        return [min(limit, len(d.splits.train)) for d in self._sets()]


def read_models(
    config: AlignConfig,
    *,
    base: Path | None = None,
    heads: str = "shared",
    sketch: bool = False,
    opened: Sequence[Checkpoint] | None = None,
    labels: Labels = BY_NAME,
    splits: Sequence[Splits] | None = None,
) -> Models:
    """Read the checkpoints, build the network, load the data, and make them fit.

    Where nothing needs a network (a spec of an earlier run or no alignment, and no data) and none is
    named, the checkpoints are only held against each other: they may be of any kind of model.

    Args:
        config: The settings.
        base: A base model.
        heads: `shared`, `separate` or `union`; `any` takes classifiers as they are.
        sketch: Build the network without memory for its weights; it can then only be config for names.
        opened: The checkpoints, where they are opened already.
        labels: How the classes of the data find their rows where names do not tell.
        splits: The data sets, where they are loaded already.

    Raises:
        InputError: Anything that does not fit, in one sentence.
    """
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    device = _device(config.runtime.accelerator)
    paths = [*config.checkpoints, *([] if base is None else [base])]
    read = list(opened or ())
    checkpoints = [*read, *(read_checkpoint(path) for path in paths[len(read) :])]
    for path in paths:
        Seen.of(path)  # a damaged list is refused now, not after the work
    about = [checkpoint.about for checkpoint in checkpoints]
    if _is_bare(config, about[0], heads):
        plain = [unwrapped(checkpoint) for checkpoint in checkpoints]
        return _bare(config, plain, about[0], has_base=base is not None)
    network = network_config(config, about[0])
    if config.inputs is not None:
        inputs = own_inputs(config.inputs)
        model = sketched(network, {}) if sketch else made(network, {}).to(device)
        fitted = [fit_names(checkpoint, model) for checkpoint in checkpoints]
        for checkpoint in fitted:
            check_tied(checkpoint, tied_names(model))
        bare = _bare(config, fitted, about[0], has_base=base is not None)
        ties = tied_names(model)
        return replace(bare, config=network, model=model.eval(), inputs=inputs, ties=ties)
    splits, resized = load_all(config, about) if splits is None else (list(splits), [])
    check_one_form(config, splits)
    shape = fitting(config, network, about[0], splits, checkpoints[0])
    outline = sketched(network, shape)
    head, ties = head_of(outline, shape), tied_names(outline)
    fitted, counts = [], []
    for checkpoint in checkpoints:
        count = shape["num_classes"]
        if head is not None and checkpoint is not checkpoints[0] and config.num_classes is None:
            count = rows_of(checkpoint, head) or count
        counts.append(count)
        fitted.append(fit_names(checkpoint, sketched(network, {**shape, "num_classes": count})))
    for checkpoint in fitted:
        check_finite(checkpoint)
        check_tied(checkpoint, ties)
    notes = [*resized, *(note for checkpoint in fitted for note in checkpoint.notes)]
    each = class_names(config, about, splits, counts[: len(config.checkpoints)])
    names = each if all(each) else None
    states = [dict(checkpoint) for checkpoint in fitted]
    states, classes = one_size(states, counts, names, head, heads, paths)
    shape["num_classes"] = len(classes) if classes else max(counts)
    model = sketched(network, shape) if sketch else made(network, shape).to(device)
    apart: list[Data] = []
    if heads == "separate" and splits:
        apart = prepared_apart(config, splits, about, each, counts[: len(config.checkpoints)])
        data = apart[: len(splits)]
    else:
        count = shape["num_classes"]
        data = prepared(config, splits, about, each, classes, count, labels=labels)
    if heads == "shared" and names and len({tuple(own) for own in names}) > 1:
        notes.append(
            "the models name their classes differently and share one classifier: its row i stands "
            "for class i of each (--heads union or --heads separate keeps them apart)"
        )
    if splits and not apart and not config.mean:
        notes += normalised_notes(about[: len(config.checkpoints)])
    return Models(
        checkpoints=fitted,
        states=states,
        has_base=base is not None,
        config=network,
        shape=shape,
        model=model.eval(),
        head=head,
        data=data,
        names=names,
        classes=classes,
        counts=counts,
        device=device,
        about=about[0],
        notes=notes,
        apart=apart,
        ties=ties,
    )


def _is_bare(config: AlignConfig, about: dict[str, Any], heads: str) -> bool:
    """Whether no network is named and none is needed."""
    traced = config.match != "none" and config.spec is None
    needed = traced or bool(config.data) or heads in ("separate", "union")
    return not needed and config.model is None and "model" not in about


def _bare(
    config: AlignConfig, checkpoints: list[Checkpoint], about: dict[str, Any], *, has_base: bool
) -> Models:
    """Return checkpoints that are only held against each other."""
    for checkpoint in checkpoints:
        check_alike(checkpoints[0], checkpoint)
        check_finite(checkpoint)
    notes = [note for checkpoint in checkpoints for note in checkpoint.notes]
    return Models(
        checkpoints=checkpoints,
        states=[dict(checkpoint) for checkpoint in checkpoints],
        has_base=has_base,
        config=None,
        shape={},
        model=None,
        head=None,
        data=[],
        names=None,
        classes=None,
        counts=[],
        device=_device(config.runtime.accelerator),
        about=about,
        notes=notes,
    )


def _device(accelerator: str) -> Any:
    there = torch.cuda.is_available()
    if accelerator == "cuda" and not there:
        raise InputError("--accelerator cuda: torch sees no CUDA device; use cpu or auto")
    return torch.device("cuda" if there and accelerator != "cpu" else "cpu")
