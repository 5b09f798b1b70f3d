"""A merge or an alignment as a command makes it: in a folder of its own, with a card."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.jobs.progress import Bar
from regraft.train.result_folder import claimed, finished, write_card

from . import merge as engine
from .align import align, write_alignment
from .card import describe, make_card, score_table, summary, write_documents
from .config import AlignConfig, MergeConfig
from .folder import VerbFolder
from .identity import identity
from .labels import Labels
from .models import read_models
from .straight_through import Progress
from .written import write_streamed

Card = dict[str, Any]


@dataclass(frozen=True)
class Done:
    """The result of a command.

    Attributes:
        card: What was done, as JSON.
        before: Whether the folder was finished already.
    """

    card: Card
    before: bool

    @property
    def lines(self) -> list[str]:
        """What was done, a sentence each."""
        return summary(self.card)

    @property
    def table(self) -> tuple[list[str], list[list[str]]] | None:
        """Headings and lines of the scores, where there are any."""
        return score_table(self.card) if self.card.get("scores") else None


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

    def work(folder: VerbFolder, progress: Progress) -> Card:
        return engine.merge(config, folder, progress=progress).card(config)

    return _in_folder("merge", config, out, work, bar=bar)


def run_align(config: AlignConfig, out: Path, *, bar: bool) -> Done:
    """Align checkpoints into a folder; see `run_merge`.

    Raises:
        RegraftError: Whatever keeps it from its end, in one sentence.
    """
    config.check()
    if config.match == "none":
        raise InputError("--match none aligns nothing: take weights, activations or ste")

    def work(folder: VerbFolder, progress: Progress) -> Card:
        return _aligned(config, folder, progress)

    return _in_folder("align", config, out, work, bar=bar)


def _in_folder(
    kind: str,
    config: AlignConfig,
    out: Path,
    work: Callable[[VerbFolder, Progress], Card],
    *,
    bar: bool,
) -> Done:
    settings = identity(kind, config)
    card = finished(out, settings)
    if card is not None:
        return Done(card, before=True)
    with claimed(out, settings):
        card = finished(out, settings)  # by another process, while this one waited
        if card is not None:
            return Done(card, before=True)
        folder = VerbFolder(out)
        with _progress(show=bar) as progress:
            made = work(folder, progress)
        folder.remove_checkpoint()
        return Done(write_card(out, write_documents(out, made)), before=False)


@contextmanager
def _progress(*, show: bool) -> Iterator[Progress]:
    with Bar(enabled=show, describe=_loss) as bar:
        yield bar.update


def _loss(row: dict[str, float]) -> str:
    return f"loss {row['loss']:.3f}" if "loss" in row else ""


def _aligned(config: AlignConfig, folder: VerbFolder, progress: Progress) -> Card:
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
    card = make_card("align", models, aligned, {"files": files})
    card["seconds"] = time.monotonic() - began
    return card
