"""A merge or an alignment as a command makes it: in a folder of its own, with a card."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.jobs.stages import Shown, Stages
from regraft.jobs.verb import Done, work_in
from regraft.report import ResultCard
from regraft.train import RunFolder

from . import merge as engine
from .align import align, write_alignment
from .card import card_of, describe, facts_of
from .config import AlignConfig, MergeConfig
from .identity import identity
from .labels import Labels
from .models import read_models
from .written import write_streamed

Facts = dict[str, Any]


def run_merge(config: MergeConfig, out: Path, *, bar: bool) -> Done:
    """Merge checkpoints into a folder, go on where it was interrupted, or read a finished one.

    Args:
        config: What is merged, and how.
        out: The folder.
        bar: Show the progress.

    Raises:
        RegraftError: Whatever keeps the merge from its end, in one sentence.
    """
    engine.check(config)

    def work(folder: RunFolder, progress: Shown) -> Facts:
        return engine.merge(config, folder, progress=progress).facts(config)

    return _in_folder("merge", config, out, work, bar=bar)


def run_align(config: AlignConfig, out: Path, *, bar: bool) -> Done:
    """Align checkpoints into a folder; see `run_merge`.

    Raises:
        RegraftError: Whatever keeps it from its end, in one sentence.
    """
    config.check()
    if config.match == "none":
        raise InputError("--match none aligns nothing: take weights, activations or ste")

    def work(folder: RunFolder, progress: Shown) -> Facts:
        return _aligned(config, folder, progress)

    return _in_folder("align", config, out, work, bar=bar)


def _in_folder(
    kind: str,
    config: AlignConfig,
    out: Path,
    work: Callable[[RunFolder, Shown], Facts],
    *,
    bar: bool,
) -> Done:
    folder = RunFolder(out, config=identity(kind, config), arm=kind, seed=config.runtime.seed)

    def made() -> ResultCard:
        with Stages(enabled=bar) as progress:
            try:
                return card_of(kind, out, work(folder, progress))
            except KeyboardInterrupt as stop:
                if config.match == "ste":  # whose steps are kept
                    raise
                raise KeyboardInterrupt("the same command starts again: nothing is kept") from stop

    return work_in(folder, made)


def _aligned(config: AlignConfig, folder: RunFolder, progress: Shown) -> Facts:
    began = time.monotonic()
    # Only straight-through matching looks at labels; any images will do for the others.
    labels = Labels(by_number=config.match != "ste")
    sketch = config.spec is not None and not config.data
    models = read_models(config, heads="any", sketch=sketch, labels=labels)
    aligned = align(config, models, folder, progress=progress, lazily=True)
    files = []
    heads = models.head.names if models.head else ()
    for i, state in enumerate(aligned.states[1:], start=1):
        name = "aligned.safetensors" if models.models == 2 else f"aligned-{i + 1}.safetensors"
        like = models.checkpoints[i].sketch
        # A classifier that was widened to the size of the others gets its own rows back.
        own = ((k, v[: len(like[k])] if k in heads else v) for k, v in state.items())
        about = describe(models, model=i)
        files += write_streamed(folder.path, name, own, about, models, model=i)
    files += write_alignment(folder.path, aligned)
    facts = facts_of("align", models, aligned, {"files": files})
    return {**facts, "seconds": time.monotonic() - began}
