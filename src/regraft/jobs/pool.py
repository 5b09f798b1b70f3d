"""Many small runs side by side, one process each, with a progress display."""

from __future__ import annotations

import atexit
import gc
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

from .base import Job


def run_all(
    runs: Sequence[Job], root: Path, *, workers: int = 1, console: Console | None = None
) -> None:
    """Run everything below `root`; what is finished already is only counted.

    A run starts once its sources among `runs` are finished, and of those that may start the first
    comes first. With one worker they run in this process.

    Raises:
        RegraftError: Of the first run that failed; the others that were under way end first.
    """
    console = console or Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=False,
    ) as display:
        task = display.add_task(f"{len(runs)} runs", total=len(runs))

        def done(run: Job, result: dict[str, Any]) -> None:
            accuracy = result["metrics"].get("test_accuracy")
            text = f"{run.setting} {run.arm} seed {run.runtime.seed}"
            text += "" if accuracy is None else f": {accuracy:.1f}%"
            display.update(task, advance=1, description=text)
            if not console.is_terminal:
                console.print(f"{text} ({result['seconds']:.0f} s)", markup=False, highlight=False)

        waiting = _Waiting(runs, root)
        if workers <= 1:
            while ready := waiting.ready():
                for run in ready:
                    done(run, run.run(root))
                    waiting.finished(run)
        elif runs:
            _spread(waiting, root, min(workers, len(runs)), done)


class _Waiting:
    """The runs that have not started, and what each still waits for."""

    def __init__(self, runs: Sequence[Job], root: Path) -> None:
        self.root = root
        listed = {run.folder(root) for run in runs}
        self.needs = [
            (run, {f for source in run.sources if (f := source.folder(root)) in listed})
            for run in runs
        ]

    def ready(self) -> list[Job]:
        """Return the runs that may start now; each is returned once."""
        free = [run for run, needs in self.needs if not needs]
        self.needs = [(run, needs) for run, needs in self.needs if needs]
        return free

    def finished(self, run: Job) -> None:
        """Take note that a run is finished."""
        for _, needs in self.needs:
            needs.discard(run.folder(self.root))


def _spread(waiting: _Waiting, root: Path, workers: int, done: Any) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        running: dict[Future[dict[str, Any]], Job] = {}
        try:
            while True:
                running |= {pool.submit(_run, run, root): run for run in waiting.ready()}
                if not running:
                    return
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    run = running.pop(future)
                    done(run, future.result())
                    waiting.finished(run)
        except BrokenProcessPool as error:
            raise RegraftError(
                "a worker process was killed, most likely for want of memory: use fewer --workers"
            ) from error
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                # Runs go on where they last saved: nobody who interrupts wants to wait for their end.
                children = multiprocessing.active_children()
                for child in children:
                    child.terminate()
                for child in children:
                    child.join()
            raise


def _start_worker() -> None:
    from regraft.train import keep_freed_memory

    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    warnings.simplefilter("ignore")
    # Every run collects garbage to measure its memory. Going through all that was imported takes a
    # quarter of a second each time, as long as a small run trains.
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # or bindings complain of leaks as the worker ends


def _end_with_parent() -> None:
    """End this worker when the command is killed: it would hold its run folder for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(run: Job, root: Path) -> dict[str, Any]:
    try:
        return run.run(root)
    except RegraftError as error:
        # Exceptions of our own cross process borders as their one sentence and their exit code.
        plain = RegraftError(f"{run.setting} {run.arm} seed {run.runtime.seed}: {error}")
        plain.exit_code = error.exit_code
        raise plain from None


def default_workers(threads: int | None) -> int:
    """Return how many runs of `threads` threads fit this machine's cores side by side."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max((cores or 1) // (threads or cores or 1), 1)
