"""A verb's work in its folder, from nothing or from where it stopped, to the card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.report.card import CARD, ResultCard, read_card, write_card
from regraft.report.wording import phrase
from regraft.train import RunFolder, keep_freed_memory
from regraft.train.environment import environment
from regraft.train.loop import Progress

from .base import Job


@dataclass(frozen=True)
class Done:
    """What a verb came to.

    Attributes:
        card: The card of the folder.
        before: Whether it was finished already.
    """

    card: ResultCard
    before: bool


def work_in(folder: RunFolder, work: Callable[[], ResultCard]) -> Done:
    """Work in a folder and write its card, or read the card of the same work that is finished.

    Args:
        folder: The folder, not opened yet.
        work: Does the work in the open folder, and returns its card without command and environment; of
            its `data` `seconds` and `metrics` go into result.json as well.

    Raises:
        RegraftError: Whatever keeps the work from its end, in one sentence.
    """
    there = _finished(folder)
    if there is not None:
        return Done(there, before=True)
    with folder:
        made = work()
        folder.check_there()
        card = write(folder.path, made)
        parts = (("metrics", {}), ("seconds", None))
        folder.finish({k: card.data.get(k, none) for k, none in parts}, keep_checkpoint=False)
        return Done(card, before=False)


def run_carded(
    job: Job,
    out: Path,
    progress: Progress | None = None,
    *,
    card_of: Callable[[dict[str, Any]], ResultCard] | None = None,
) -> Done:
    """Run a job in a folder and return its card; of a finished one the card is read.

    Args:
        job: The job.
        out: Its folder.
        progress: See `Job.run`.
        card_of: Makes the card of a result, as `work_in` takes it, where the job's own work writes none.

    Raises:
        RegraftError: Whatever keeps the run from its end, in one sentence.
    """
    keep_freed_memory()
    before = job.open(out).finished() is not None

    def carded(result: dict[str, Any]) -> None:
        if card_of is not None:
            write(out, card_of(result))

    result = job.run_in(out, progress=progress, ending=carded)
    if not (out / CARD).exists():  # a run of a recipe
        carded(result)
    card = read_card(out)
    if card is None:
        raise InputError(f"{out} has lost its card.json: remove the folder to start again")
    return Done(card, before)


def write(path: Path, card: ResultCard) -> ResultCard:
    """Write a card with the command and the environment of this process; see `write_card`."""
    about = environment()
    command = about.pop("command")
    facts = {phrase(k): str(v) for k, v in about.items() if v is not None}
    data = {"environment": about, **card.data}
    whole = replace(card, command=command, facts={**card.facts, **facts}, data=data)
    return write_card(path, whole)


def _finished(folder: RunFolder) -> ResultCard | None:
    return None if folder.finished() is None else read_card(folder.path)
