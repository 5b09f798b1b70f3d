"""Many small runs side by side, one process each, with a progress display."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from regraft.errors import RegraftError

from .job import Job, run_job


def run_all(
    jobs: Sequence[Job], root: Path, *, workers: int = 1, console: Console | None = None
) -> None:
    """Run every job below `root`; those that are finished already are only counted.

    Jobs with a `source` run after all others. With one worker they run in this process.

    Raises:
        RegraftError: Of the first job that failed; the others that were under way end first.
    """
    console = console or Console(stderr=True)
    first = [j for j in jobs if j.source is None]
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=False,
    ) as display:
        task = display.add_task(f"{len(jobs)} runs", total=len(jobs))

        def done(job: Job, result: dict[str, Any]) -> None:
            accuracy = result["metrics"].get("test_accuracy", float("nan"))
            text = f"{job.setting} {job.arm} seed {job.runtime.seed}: {accuracy:.1f}%"
            display.update(task, advance=1, description=text)
            if not console.is_terminal:
                console.print(f"{text} ({result['seconds']:.0f} s)", markup=False, highlight=False)

        for wave in (first, [j for j in jobs if j.source is not None]):
            if workers <= 1:
                for job in wave:
                    done(job, run_job(job, root))
            elif wave:
                _spread(wave, root, workers, done)


def _spread(jobs: Sequence[Job], root: Path, workers: int, done: Any) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start_worker
    ) as pool:
        running: dict[Future[dict[str, Any]], Job] = {
            pool.submit(_run, job, root): job for job in jobs
        }
        try:
            while running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    done(running.pop(future), future.result())
        except BrokenProcessPool as error:
            raise RegraftError(
                "a worker process was killed, most likely for want of memory: use fewer --workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    from regraft.train import keep_freed_memory

    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    warnings.simplefilter("ignore")


def _end_with_parent() -> None:
    """End this worker when the command is killed: it would hold its run folder for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(job: Job, root: Path) -> dict[str, Any]:
    try:
        return run_job(job, root)
    except RegraftError as error:
        # Exceptions of our own cross process borders as their one sentence and their exit code.
        plain = RegraftError(f"{job.setting} {job.arm} seed {job.runtime.seed}: {error}")
        plain.exit_code = error.exit_code
        raise plain from None


def default_workers(threads: int | None) -> int:
    """Return how many runs of `threads` threads fit this machine's cores side by side."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max((cores or 1) // (threads or cores or 1), 1)
