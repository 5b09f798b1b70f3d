"""The folder of a result: a lock, whose it is, metrics, state, kept parts, and the result.

```
OUT/regraft.json            what it is of, with its digest; written first, never changed
OUT/environment.json        what it ran on
OUT/metrics.jsonl           one JSON object a line; the same bits whenever the run is repeated
OUT/checkpoint.safetensors  the newest state, replaced atomically
OUT/unfinished/             parts that are through, until all are
OUT/result.json             there when everything else is
```

A verb that leaves a folder and a job of a recipe both work in a `RunFolder`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from regraft.config import digest
from regraft.config.command import options_of
from regraft.digests import file_digest
from regraft.errors import InputError, RegraftError
from regraft.files import load_json, reading, write_json
from regraft.machine import is_first_process

from .checkpoint import load_state, save_state
from .difference import difference
from .environment import environment
from .lock import FolderLock

SCHEMA = 1

_STATE, _PARTS = "checkpoint.safetensors", "unfinished"
_LISTS = ("metrics.jsonl", "split.csv", "classes.txt")

_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.tmp|\.tmp[A-Za-z0-9]{6}")
"""What a killed process leaves of a file it was writing: our own name, and safetensors' own."""

_BEGUN = re.compile(r"(regraft|environment|data\d*|search)\.json|metrics\.jsonl|split\.csv")
"""What a folder holds before there is anything to go on from."""


class RunFolder:
    """Open a result folder for writing, new or to go on; use it as a context manager.

    One process at a time holds a folder; another is refused at once. A folder that holds another
    run, or something else altogether, is refused and left untouched. A new folder is removed again if
    the input is refused before there is anything to keep.

    Args:
        path: The folder; made with its parents if it is missing.
        config: JSON form of everything that determines the result.
        setting: What is compared here, e.g. `fashion_mnist/conv_small/width=0.5`; None for a result
            that is no run to compare, which reports leave out.
        arm: The method.
        control: The arm this one is held against, or None.
        seed: The seed; the same seed in two arms makes a pair.

    Attributes:
        writes: Whether this process writes: of several in one run only the first does, the others
            read the checkpoint.
        kept_seconds: What the parts took that an interrupted run had kept.

    Raises:
        InputError: The folder is foreign, damaged, holds another run, or cannot be written.
        RegraftError: Another process holds it, or it was removed while it was being written.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        config: dict[str, Any],
        arm: str,
        seed: int,
        setting: str | None = None,
        control: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.identity = {
            "schema": SCHEMA,
            "setting": setting,
            "arm": arm,
            "control": control,
            "seed": seed,
            "digest": digest(config),
            "config": config,
        }
        self.writes = is_first_process()
        self.kept_seconds = 0.0
        self._lock: FolderLock | None = None
        self._new = False
        self._metrics: Any = None
        self._logged: dict[str, str] = {}

    def __enter__(self) -> RunFolder:
        if not self.writes:
            return self
        try:
            self._lock = FolderLock(self.path)
            self._check_or_start()
        except OSError as error:
            self.close()
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from error
        except BaseException:
            if self._lock is not None and self._lock.made:
                self._forget()
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            self._forget()
        self.close()

    def close(self) -> None:
        """Close the files and let other processes have the folder."""
        if self._metrics is not None:
            # Only a row that could not be written, and was reported, is still to be flushed here.
            with contextlib.suppress(OSError):
                self._metrics.close()
            self._metrics = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def check_there(self) -> None:
        """Refuse to go on in a folder that somebody has removed.

        Raises:
            RegraftError: It is gone, or another is in its place.
        """
        if self._lock is not None and not self._lock.is_there():
            raise RegraftError(
                f"{self.path} was removed while it was being written, and the result with it: run the "
                "same command again"
            )

    def _check_or_start(self) -> None:
        file = self.path / "regraft.json"
        unfinished = [p for p in self.path.iterdir() if _UNFINISHED.fullmatch(p.name)]
        self._new = not file.exists()
        if self._new:
            if any(p not in unfinished for p in self.path.iterdir()):
                raise InputError(
                    f"{self.path} is not empty and is no run folder (it has no regraft.json): choose "
                    "another folder"
                )
            write_json(file, {**self.identity, **options_of(self.path)})
        self._check()
        # From here on the folder is ours, and nobody else writes to it.
        for path in unfinished:
            path.unlink()
        if not (self.path / "environment.json").exists():
            write_json(self.path / "environment.json", environment())
        if self.result is not None:
            shutil.rmtree(self.path / _PARTS, ignore_errors=True)

    def _check(self) -> None:
        """Refuse a folder that is of something else, or does not say what it is of."""
        file = self.path / "regraft.json"
        with reading(file, "remove the folder to start the run again"):
            known = load_json(file, ours=True)
            if not isinstance(known["config"], dict) or not isinstance(known["digest"], str):
                raise ValueError("it does not say what it is of")
        if known["digest"] != self.identity["digest"] or known.get("arm") != self.identity["arm"]:
            raise InputError(
                f"{self.path} holds another run ({difference(known, self.identity)}): choose "
                "another folder, or remove this one to start again"
            )

    def _forget(self) -> None:
        """Remove a new folder without anything to go on from: the corrected command may have it."""
        if self._lock is None or not self._new or not self._lock.is_there():
            return
        for path in self.path.rglob("*"):
            kept = not _BEGUN.fullmatch(path.name) or (
                path.suffix == ".jsonl" and path.stat().st_size
            )
            if path.is_file() and kept and "trajectory" not in path.relative_to(self.path).parts:
                return  # a recording is gone on with from a checkpoint alone
        for path in [self.path] if self._lock.made else list(self.path.iterdir()):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, or None.

        Raises:
            InputError: result.json is damaged.
        """
        return read_result(self.path)

    def finished(self) -> dict[str, Any] | None:
        """Return the result where the same run has finished; nothing is held and nothing written.

        Raises:
            InputError: The folder is a file, holds another run, or is damaged.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: give a folder to make")
        if not (self.path / "regraft.json").exists():
            return None
        self._check()
        return self.result

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the part of this name that an interrupted run made, or make and keep it until the end.

        Args:
            name: Name of the part.
            make: Returns a tree of dicts, lists, tensors and plain values.

        Raises:
            InputError: The file is damaged.
            RegraftError: The disk is full or failing.
        """
        file = self.path / _PARTS / f"{name}.safetensors"
        if file.exists():
            part = load_state(file)
            if part.get("digest") == self.identity["digest"]:
                self.kept_seconds += part["seconds"]
                return part["tree"]
        began = time.monotonic()
        tree = make()
        if self.writes:
            self.check_there()
            seconds = time.monotonic() - began
            save_state(file, {"digest": self.identity["digest"], "seconds": seconds, "tree": tree})
        return tree

    def pin(self, name: str, value: dict[str, Any]) -> None:
        """Write `value` as NAME.json the first time; afterwards refuse any other.

        Raises:
            InputError: The run was started with another value, or the file is damaged.
        """
        if not self.writes:
            return
        self.check_there()
        file = self.path / f"{name}.json"
        known = read_json(file)
        if known is None:
            write_json(file, value)
        elif known != value:
            changed = next(k for k in {**known, **value} if known.get(k) != value.get(k))
            raise InputError(
                f"{self.path} was started with other {name} ({changed} was {known.get(changed)!r}, now "
                f"{value.get(changed)!r}): restore it, or choose another folder"
            )

    def log(self, row: dict[str, Any]) -> None:
        """Append one row of metrics; `sync_metrics` makes it last.

        Raises:
            RegraftError: The disk is full or failing.
        """
        if not self.writes:
            return
        with self._writing_metrics():
            rows = self._rows()
            rows.write((json.dumps(row) + "\n").encode())
            rows.flush()

    def sync_metrics(self) -> int:
        """Force the metrics to the disk and return their length in bytes.

        Raises:
            RegraftError: The disk is full or failing.
        """
        if not self.writes:
            return 0
        with self._writing_metrics():
            os.fsync(self._rows().fileno())
        return self._rows().tell()

    def _rows(self) -> Any:
        """Return the open file of metrics, which is not made before there is a row."""
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("ab")
        return self._metrics

    @contextlib.contextmanager
    def _writing_metrics(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RegraftError(
                f"writing {self.path / 'metrics.jsonl'} failed ({error.strerror}): free some space "
                "and run the same command again"
            ) from error

    def truncate_metrics(self, length: int) -> None:
        """Drop rows written after the checkpoint whose state is taken up again.

        Raises:
            InputError: The file is shorter than the checkpoint says, or its rows are others.
        """
        if not self.writes:
            return
        file, rows = self.path / "metrics.jsonl", self._rows()
        if os.fstat(rows.fileno()).st_size < length:
            raise InputError(
                f"{file} is shorter than its checkpoint says: remove the folder to start again"
            )
        known = self._logged.get(str(length))
        if known is not None and file_digest(file, length) != known:
            raise InputError(
                f"{file} is not as Regraft wrote it (its digest in {_STATE} is of other bytes): remove "
                "the folder to start again"
            )
        rows.truncate(length)
        rows.seek(0, os.SEEK_END)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint atomically; it has a digest of the metrics so far."""
        self.check_there()
        file, logged = self.path / "metrics.jsonl", {}
        if file.exists():
            length = self.sync_metrics()
            logged = {str(length): file_digest(file, length)}
        save_state(self.path / _STATE, {**state, "logged": logged})

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the newest state, or None for a run without one.

        Raises:
            InputError: The file is damaged.
        """
        file = self.path / _STATE
        state = load_state(file) if file.exists() else None
        self._logged = {} if state is None else state.pop("logged", {})
        return state

    def finish(self, result: dict[str, Any], *, keep_checkpoint: bool = True) -> None:
        """Write the result, last of all and atomically.

        Args:
            result: `metrics` and `seconds` at least.
            keep_checkpoint: Keep the last state, for runs that others start from.

        Raises:
            RegraftError: The folder was removed while it was being written.
        """
        if not self.writes:
            return
        self.check_there()
        kept = {"schema": SCHEMA, **result, "digests": self._digests()}
        write_json(self.path / "result.json", kept)
        shutil.rmtree(self.path / _PARTS, ignore_errors=True)
        if not keep_checkpoint:
            (self.path / _STATE).unlink(missing_ok=True)

    def _digests(self) -> dict[str, str]:
        """Return the digests of the files that are no JSON and cannot carry their own."""
        files = (self.path / name for name in _LISTS)
        return {file.name: file_digest(file) for file in files if file.is_file()}


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished run as it was given to `finish`, or None.

    Raises:
        InputError: result.json is damaged.
    """
    whole = read_json(folder / "result.json")
    return whole and {key: value for key, value in whole.items() if key != "digests"}


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object from a file, or None where there is no file.

    Raises:
        InputError: The file is damaged.
    """
    if not path.exists():
        return None
    with reading(path, "restore it, or start again in another folder"):
        value = load_json(path, ours=True)
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
        return value
