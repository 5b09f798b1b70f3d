"""A run is a folder: config, environment, metrics, checkpoint, result.

```
RUN/regraft.json             what was asked, with its digest; written first, never changed
RUN/environment.json        what it ran on
RUN/metrics.jsonl           one JSON object a line; the same bits whenever the run is repeated
RUN/checkpoint.safetensors  the newest state, replaced atomically
RUN/result.json             there when the run has finished
```
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from regraft.config import digest
from regraft.config.command import options_of
from regraft.errors import InputError, RegraftError
from regraft.files import load_json, make_folder, write_text
from regraft.machine import is_first_process

from .checkpoint import load_state, save_state
from .environment import environment

SCHEMA = 1

_LOCK_SECONDS = 6.0

# What a killed process leaves of a file it was writing: our own name, and safetensors' own.
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.tmp|\.tmp[A-Za-z0-9]{6}")


class RunFolder:
    """Open a run's folder for writing, new or to go on; use it as a context manager.

    One process at a time holds a folder. A folder that holds another run, or something else
    altogether, is refused and left untouched.

    Args:
        path: The folder; made with its parents if it is missing.
        config: JSON form of everything that determines the result.
        setting: What is compared here, e.g. `fashion_mnist/conv_small/width=0.5`.
        arm: The method.
        control: The arm this one is held against, or None.
        seed: The seed; the same seed in two arms makes a pair.

    Raises:
        InputError: The folder is foreign, damaged, holds another run, or cannot be written.
        RegraftError: Another process holds it.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        config: dict[str, Any],
        setting: str,
        arm: str,
        seed: int,
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
        # Of several processes in one run only the first writes; the others read the checkpoint.
        self.writes = is_first_process()
        self._lock: int | None = None
        self._metrics: Any = None

    def __enter__(self) -> RunFolder:
        if not self.writes:
            return self
        make_folder(self.path)
        try:
            self._claim()
            self._check_or_start()
            self._metrics = (self.path / "metrics.jsonl").open("ab")
        except OSError as error:
            self.close()
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and let other processes have the folder."""
        if self._metrics is not None:
            # Only a row that could not be written, and was reported, is still to be flushed here.
            with contextlib.suppress(OSError):
                self._metrics.close()
            self._metrics = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _claim(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows has no flock; one process at a time is the user's care there
            return
        self._lock = os.open(self.path, os.O_RDONLY)
        # The data workers of a run that was just killed hold its lock until they notice.
        patience = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                refused = error
            if time.monotonic() < patience:
                time.sleep(0.1)
                continue
            self.close()
            raise RegraftError(
                f"{self.path} is being written by another process: wait for it or choose another "
                "folder"
            ) from refused

    def _check_or_start(self) -> None:
        file = self.path / "regraft.json"
        unfinished = [p for p in self.path.iterdir() if _UNFINISHED.fullmatch(p.name)]
        if not file.exists():
            if any(p not in unfinished for p in self.path.iterdir()):
                raise InputError(
                    f"{self.path} is not empty and is no run folder (it has no regraft.json): choose "
                    "another folder"
                )
            write_text(file, _json({**self.identity, **options_of(self.path)}))
        try:
            found = load_json(file)
            if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
                raise ValueError("no config in it")
            if "digest" not in found:
                raise ValueError("no digest in it")
        except (ValueError, OSError) as error:
            raise InputError(
                f"{file} is damaged ({error}): remove the folder to start the run again"
            ) from error
        if found["digest"] != self.identity["digest"] or found.get("arm") != self.identity["arm"]:
            raise InputError(
                f"{self.path} holds another run ({_difference(found, self.identity)}): choose "
                "another folder, or remove this one to start again"
            )
        # From here on the folder is ours, and nobody else writes to it.
        for path in unfinished:
            path.unlink()
        if not (self.path / "environment.json").exists():
            write_text(self.path / "environment.json", _json(environment()))

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished run, or None.

        Raises:
            InputError: result.json is damaged.
        """
        return read_json(self.path / "result.json")

    def pin(self, name: str, value: dict[str, Any]) -> None:
        """Write `value` as NAME.json the first time; afterwards refuse any other.

        Raises:
            InputError: The run was started with another value, or the file is damaged.
        """
        if not self.writes:
            return
        file = self.path / f"{name}.json"
        found = read_json(file)
        if found is None:
            write_text(file, _json(value))
        elif found != value:
            changed = next(k for k in {**found, **value} if found.get(k) != value.get(k))
            raise InputError(
                f"{self.path} was started with other {name} ({changed} was {found.get(changed)!r}, now "
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
            self._metrics.write((json.dumps(row) + "\n").encode())
            self._metrics.flush()

    def sync_metrics(self) -> int:
        """Force the metrics to the disk and return their length in bytes.

        Raises:
            RegraftError: The disk is full or failing.
        """
        with self._writing_metrics():
            os.fsync(self._metrics.fileno())
        return self._metrics.tell()

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
            InputError: The file is shorter than the checkpoint says.
        """
        if not self.writes:
            return
        file = self.path / "metrics.jsonl"
        if file.stat().st_size < length:
            raise InputError(
                f"{file} is shorter than its checkpoint says: remove the folder to start again"
            )
        self._metrics.truncate(length)
        self._metrics.seek(0, os.SEEK_END)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint atomically."""
        save_state(self.path / "checkpoint.safetensors", state)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the newest state, or None for a run without one.

        Raises:
            InputError: The file is damaged.
        """
        file = self.path / "checkpoint.safetensors"
        return load_state(file) if file.exists() else None

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, last of all and atomically."""
        if not self.writes:
            return
        write_text(self.path / "result.json", _json({"schema": SCHEMA, **result}))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object from a file, or None where there is no file.

    Raises:
        InputError: The file is damaged.
    """
    if not path.exists():
        return None
    try:
        found = load_json(path)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path} is damaged ({error}): remove its folder to start again"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged (no JSON object): remove its folder to start again")
    return found


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    if found.get("arm") != wanted["arm"]:
        return f"arm {found.get('arm')} instead of {wanted['arm']}"
    pairs = [("", found.get("config", {}), wanted["config"])]
    for prefix, a, b in pairs:
        for key in {**a, **b}:
            x, y = a.get(key), b.get(key)
            if isinstance(x, dict) and isinstance(y, dict):
                pairs.append((f"{prefix}{key}.", x, y))
            elif x != y:
                return f"{prefix}{key}={x!r} instead of {y!r}"
    return "its config differs"
