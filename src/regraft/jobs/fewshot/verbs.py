"""What `regraft fewshot train` runs: the job of the recipe, and a card of what came of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from regraft.errors import InputError, MissingExtraError
from regraft.jobs.verb import Done
from regraft.report import read_card, write_card
from regraft.train import command_line, keep_freed_memory
from regraft.train.loop import Progress

from .cards import trained_card
from .job import FewshotJob

_STARTED = {"regraft.json", "environment.json", "data.json", "metrics.jsonl"}


def train(job: FewshotJob, out: Path, progress: Progress | None = None) -> Done:
    """Run a job in a folder, or go on, and return what it came to; a finished one is only read.

    A new folder is removed again if the input is refused before anything is in it.

    Raises:
        RegraftError: Whatever keeps the run from its end, in one sentence.
    """
    keep_freed_memory()
    new, before = not out.exists(), job.open(out).finished() is not None
    try:
        result = job.run_in(out, progress=progress)
    except (InputError, MissingExtraError):
        if new and out.is_dir() and {p.name for p in out.iterdir()} <= _STARTED:
            shutil.rmtree(out, ignore_errors=True)
        raise
    card = read_card(out)
    if card is None:
        card = write_card(out, trained_card(out, job.config(), result, command_line()))
    return Done(card, before)
