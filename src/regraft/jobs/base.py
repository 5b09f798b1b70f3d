"""What a recipe is made of: runs that know their folder, their sources, and how to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from regraft.config import RuntimeConfig
from regraft.train import RunFolder
from regraft.train.loop import Progress


@runtime_checkable
class Runnable(Protocol):
    """One run of a recipe: a frozen dataclass, picklable, that determines all of its numbers.

    `run` works in `folder(root)` through `regraft.train.RunFolder`, goes on where a killed run
    stopped, only reads a finished one, and returns the result: `metrics` (name -> number) and
    `seconds` at least. Runs of one `setting` are compared; equal seeds of two arms make a pair.
    """

    @property
    def setting(self) -> str:
        """What is compared here."""
        ...

    @property
    def arm(self) -> str:
        """The method's name in tables."""
        ...

    @property
    def control(self) -> str | None:
        """The arm of the same setting and seed that this one is held against."""
        ...

    @property
    def runtime(self) -> RuntimeConfig:
        """The seed, and where and how exactly the run computes."""
        ...

    @property
    def sources(self) -> Sequence[Runnable]:
        """The runs, in the same recipe, that have to be finished before."""
        ...

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines the numbers."""
        ...

    def folder(self, root: Path) -> Path:
        """Return the run's own folder below `root`."""
        ...

    def run(self, root: Path, *, progress: Progress | None = None) -> dict[str, Any]:
        """Run, or go on, or read; sources are found below `root`."""
        ...

    def with_seed(self, seed: int) -> Runnable:
        """Return the same run at another seed, its sources with it."""
        ...

    def with_data_root(self, root: str) -> Runnable:
        """Return the same run with the data sets below `root`, its sources with it."""
        ...


def folder_of(run: Runnable, root: Path) -> Path:
    """Return the usual folder: setting, arm and seed below `root`."""
    return root / run.setting / run.arm / f"seed{run.runtime.seed}"


def open_folder(run: Runnable, root: Path) -> RunFolder:
    """Return the run's folder below `root` under everything that identifies the run."""
    return RunFolder(
        run.folder(root),
        config=run.config(),
        setting=run.setting,
        arm=run.arm,
        control=run.control,
        seed=run.runtime.seed,
    )


def with_sources(runs: Sequence[Runnable]) -> list[Runnable]:
    """Return runs and all that they need, each once and after its sources."""
    found: dict[Path, Runnable] = {}

    def add(run: Runnable) -> None:
        for source in run.sources:
            add(source)
        found.setdefault(run.folder(Path()), run)

    for run in runs:
        add(run)
    return list(found.values())
