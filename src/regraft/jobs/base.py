"""One job, from its config to a result folder: what verbs and recipes start."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from regraft.config import DataConfig, RuntimeConfig, check
from regraft.train import RunFolder
from regraft.train.loop import Progress

from .data import fingerprint, load_once

_UNSAID = {DataConfig: ("root", "download"), RuntimeConfig: ("checkpoint_seconds",)}
"""Fields that change no number: where data lie, and how often a run saves."""

_LATER = {DataConfig: ("channels",), RuntimeConfig: ("channels_last",)}
"""Fields of later versions, unsaid where they are empty: the folder of an earlier run is known by that."""

_PLAIN = {bool, int, float, str}
_NAMES = ("setting", "arm", "control")

_J = TypeVar("_J", bound="Job")
_V = TypeVar("_V")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that determines one run; a frozen dataclass that can be pickled.

    What a run needs is derived from its fields: `sources` are the jobs among them, `config` their JSON
    form, `with_seed` and `with_data_root` change all of them. A subclass adds fields, writes `work`, and
    adds to `check` what ranges beside the fields cannot say. Runs of one `setting` are compared; equal
    seeds of two arms make a pair.

    Attributes:
        setting: What is compared here.
        arm: The method's name in tables.
        control: The arm of the same setting and seed that this one is held against.
        runtime: The seed, and where and how exactly the run computes.
        keeps_checkpoint: What only going on would need is kept in a finished run, too.
    """

    keeps_checkpoint: ClassVar[bool] = True

    setting: str
    arm: str
    control: str | None = None
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    @property
    def sources(self) -> Sequence[Job]:
        """The runs that have to be finished before."""
        return tuple(part for part in _parts(self) if isinstance(part, Job))

    def folder(self, root: Path) -> Path:
        """Return the run's own folder below `root`: setting, arm and seed."""
        return root / self.setting / self.arm / f"seed{self.runtime.seed}"

    def config(self) -> dict[str, Any]:
        """Return the JSON form of everything that determines the numbers."""
        return {f.name: to_json(getattr(self, f.name)) for f in _fields(self)}

    def with_seed(self: _J, seed: int) -> _J:
        """Return the same run at another seed, its sources with it."""
        return _with(self, seed=seed)

    def with_data_root(self: _J, root: str) -> _J:
        """Return the same run with the data sets below `root`, its sources with it."""
        return _with(self, root=root)

    def check(self) -> None:
        """Refuse what cannot be run, before anything is loaded or written.

        Raises:
            InputError: A number of a config is out of its range.
        """
        check(*(part for part in _parts(self) if _is_config(part)))

    def fingerprints(self) -> Iterable[dict[str, Any]]:
        """Return what tells whether the data sets are still those that the run was started with."""
        configs = (part for part in _parts(self) if isinstance(part, DataConfig))
        return (fingerprint(load_once(config)) for config in configs)

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Do the work in an open folder, or go on, and return the result.

        Args:
            folder: The run's folder.
            root: Folder below which the sources have finished.
            progress: Called with steps done, steps in all, and the newest row of metrics.

        Returns:
            `metrics` (name -> number) and `seconds` at least, as JSON.
        """
        raise NotImplementedError

    def run(self, root: Path | str, *, progress: Progress | None = None) -> dict[str, Any]:
        """Run in the job's folder below `root` and return its result; a finished one is only read.

        Raises:
            RegraftError: Whatever keeps the run from its end, in one sentence.
        """
        return self.run_in(self.folder(Path(root)), root=Path(root), progress=progress)

    def run_in(
        self,
        path: Path,
        *,
        root: Path | None = None,
        progress: Progress | None = None,
        ending: Callable[[dict[str, Any]], object] | None = None,
    ) -> dict[str, Any]:
        """Run in the folder `path`, as `run` otherwise; `ending` takes the result before it is written."""
        self.check()
        folder = self.open(path)
        result = folder.finished()
        if result is not None:
            return result
        with folder:
            for i, fingerprinted in enumerate(_distinct(self.fingerprints()), start=1):
                folder.pin(f"data{i}" if i > 1 else "data", fingerprinted)
            result = self.work(folder, path if root is None else root, progress)
            if ending is not None and folder.writes:
                ending(result)
            folder.finish(result, keep_checkpoint=self.keeps_checkpoint)
        return {"schema": 1, **result}

    def open(self, path: Path) -> RunFolder:
        """Return the folder `path` under everything that identifies the run."""
        return RunFolder(
            path,
            config=self.config(),
            setting=self.setting,
            arm=self.arm,
            control=self.control,
            seed=self.runtime.seed,
        )


def _distinct(values: Iterable[_V]) -> list[_V]:
    distinct: list[_V] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    return distinct


def with_sources(jobs: Sequence[Job]) -> list[Job]:
    """Return jobs and all that they need, each once and after its sources."""
    ordered: dict[Path, Job] = {}

    def add(job: Job) -> None:
        if job.folder(Path()) in ordered:
            return
        for source in job.sources:
            add(source)
        ordered[job.folder(Path())] = job

    for job in jobs:
        add(job)
    return list(ordered.values())


def to_json(value: Any) -> Any:
    """Return the JSON form of what a job's field holds, without what changes no number."""
    if value is None or type(value) in _PLAIN:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own: Callable[[], dict[str, Any]] | None = getattr(value, "config", None)
        if own is not None:
            return own()
        unsaid, later = (names.get(type(value), ()) for names in (_UNSAID, _LATER))
        return {
            f.name: to_json(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.name not in unsaid and not (f.name in later and getattr(value, f.name) is None)
        }
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return json.loads(json.dumps(value, default=str))


def _fields(job: Job) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(job) if f.name not in _NAMES]


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, Job | type)


def _parts(job: Job) -> Iterator[Any]:
    """Yield the jobs and config dataclasses that a job holds, the insides of configs too."""

    def inside(value: Any) -> Iterator[Any]:
        if isinstance(value, tuple | list):
            for item in value:
                yield from inside(item)
        elif isinstance(value, Job):
            yield value
        elif _is_config(value):
            yield value
            for f in dataclasses.fields(value):
                yield from inside(getattr(value, f.name))

    for f in _fields(job):
        yield from inside(getattr(job, f.name))


def _with(job: _J, *, seed: int = 0, root: str | None = None) -> _J:
    """Return a job with another data root, or without one another seed, in all that it holds."""

    def changed(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(changed, value))
        if isinstance(value, Job):
            return value.with_seed(seed) if root is None else value.with_data_root(root)
        if isinstance(value, DataConfig):
            return value if root is None else dataclasses.replace(value, root=root)
        if isinstance(value, RuntimeConfig):
            return dataclasses.replace(value, seed=seed) if root is None else value
        if not _is_config(value):
            return value
        new = {f.name: changed(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        old = {name: getattr(value, name) for name in new}
        return value if all(new[n] is old[n] for n in new) else dataclasses.replace(value, **new)

    new = {f.name: changed(getattr(job, f.name)) for f in _fields(job) if f.init}
    return dataclasses.replace(job, **new)
