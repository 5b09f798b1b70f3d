"""Run folders, read back: what was configured, what was measured, and whether it finished."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regraft.digests import check_digests
from regraft.errors import InputError
from regraft.files import load_json, parse_json

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a finished run measured at its end."""

    metrics: dict[str, float]
    seconds: float | None = None
    trainable_parameters: int | None = None
    stored_bytes: int | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder; runs of one comparison share `setting`, and equal seeds make pairs."""

    folder: Path
    setting: str
    arm: str
    control: str | None
    seed: int
    digest: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    """The rows of `metrics.jsonl` by rising step; a step that was repeated keeps its last row."""
    result: Result | None = None

    @property
    def finished(self) -> bool:
        """Whether the run wrote its result."""
        return self.result is not None


def read_run(folder: str | Path) -> Run:
    """Read one run folder.

    A run without `result.json` is unfinished, not broken, and the half line that a killed run
    leaves at the end of its metrics is dropped.

    Raises:
        InputError: The folder is no run, or one of its files is damaged, foreign or too new; the
            message names the file, and the line where there is one.
    """
    folder = Path(folder)
    path = folder / "regraft.json"
    config = _object(path)
    if config is None:
        raise InputError(
            f"{path} is missing: expected a run folder, which holds the regraft.json its run wrote"
        )
    _check_schema(path, config)
    arm = _name(path, config, "arm")
    control = None if config.get("control") is None else _name(path, config, "control")
    seed = config.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError(f"{path}: seed is {seed!r}, expected an integer; is this a run's folder?")
    settings = config.get("config", {})
    if not isinstance(settings, dict):
        raise InputError(f"{path}: config is {settings!r:.60}, expected an object")
    result = _result(folder / "result.json")
    return Run(
        folder=folder,
        setting=_name(path, config, "setting"),
        arm=arm,
        control=None if control == arm else control,
        seed=seed,
        digest=str(config.get("digest", "")),
        config=settings,
        environment=_object(folder / "environment.json") or {},
        history=_history(folder / "metrics.jsonl", finished=result is not None),
        result=result,
    )


def find_runs(folders: str | Path | Iterable[str | Path]) -> list[Run]:
    """Read every run at or below the given folders, in the order of their paths.

    Numbers in paths count as numbers, so that `seed=10` follows `seed=9`. A run that is reached
    twice is read once.

    Raises:
        InputError: A folder does not exist, holds no run, or holds one that cannot be read.
    """
    tops = [folders] if isinstance(folders, str | Path) else list(folders)
    folders_by_path: dict[Path, Path] = {}
    for top in map(Path, tops):
        if not top.is_dir():
            raise InputError(f"{top} is not a folder: give run folders, or folders that hold them")
        below = _candidates(top)
        if not below:
            raise InputError(
                f"{top} holds no run: expected folders with the regraft.json that a run writes"
            )
        for folder in sorted(below, key=_natural):
            folders_by_path.setdefault(folder.resolve(), folder)
    return [read_run(folder) for folder in folders_by_path.values()]


def _candidates(top: Path) -> list[Path]:
    folders = []
    for folder, subfolders, files in os.walk(top):
        if "regraft.json" in files:
            # What lies inside a run (a ticket, a checkpoint) may bring one of its own.
            subfolders.clear()
        if {"regraft.json", "metrics.jsonl", "result.json"}.isdisjoint(files):
            continue
        if not _is_no_run(Path(folder)):
            folders.append(Path(folder))
    return folders


def _is_no_run(folder: Path) -> bool:
    """Whether a folder is of a verb such as `merge`, whose result is not compared with others."""
    try:
        stored = load_json(folder / "regraft.json", ours=True)
    except (OSError, ValueError):
        return False  # reading it as a run says what is wrong
    return isinstance(stored, dict) and stored.get("setting", "") is None


def _natural(path: Path) -> list[tuple[float, str]]:
    parts = re.split(r"(\d+(?:\.\d+)?)", path.as_posix())
    return [(float(part), "") if i % 2 else (-1.0, part) for i, part in enumerate(parts)]


def _object(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where there is no such file."""
    text = _text(path)
    if text is None:
        return None
    try:
        data = parse_json(text, ours=True)
    except ValueError as error:
        what = f"cannot be read ({_reason(error)})"
        if isinstance(error, json.JSONDecodeError):
            what = f"is not valid JSON at line {error.lineno} ({_reason(error)})"
        raise InputError(f"{path} {what}: restore the file or leave out the run") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds a {type(data).__name__}, expected a JSON object")
    return data


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte {error.start}): restore the file or leave out the run"
        ) from error


def _check_schema(path: Path, data: dict[str, Any]) -> None:
    schema = data.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise InputError(
            f"{path} has schema {schema}, and this version reads up to {SCHEMA}: upgrade regraft"
        )
    if schema != SCHEMA or isinstance(schema, bool):
        raise InputError(f"{path}: schema is {schema!r}, expected {SCHEMA}; is this a run's file?")


def _name(path: Path, data: dict[str, Any], key: str) -> str:
    value = data.get(key)
    # Control characters and lone surrogates would make figures and pages unreadable as XML.
    if not isinstance(value, str) or not value or not value.isprintable():
        raise InputError(f"{path}: {key} is {value!r}, expected one line of printable text")
    return value


def _result(path: Path) -> Result | None:
    data = _object(path)
    if data is None:
        return None
    _check_schema(path, data)
    check_digests(path.parent, data.get("digests", {}))
    metrics = data.get("metrics")
    if not isinstance(metrics, dict):
        raise InputError(f"{path}: metrics is {metrics!r:.60}, expected an object of numbers")
    for key, value in metrics.items():
        if not _is_number(value):
            raise InputError(f"{path}: metrics.{key} is {value!r:.60}, expected a finite number")
    costs = {}
    for key in ("seconds", "trainable_parameters", "stored_bytes", "peak_memory_bytes"):
        value = data.get(key)
        if value is not None and not (_is_number(value) and value >= 0):
            raise InputError(f"{path}: {key} is {value!r:.60}, expected a number from 0 up")
        if key != "seconds" and isinstance(value, float):
            raise InputError(f"{path}: {key} is {value!r:.60}, expected an integer")
        costs[key] = value
    return Result(metrics=metrics, **costs)


def _is_number(value: Any) -> bool:
    # Integers beyond the floats are none either; `math.isfinite` would raise.
    most = sys.float_info.max
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= most


def _history(path: Path, *, finished: bool) -> tuple[dict[str, Any], ...]:
    # Split at line feeds alone: JSON strings may hold the other ends of line that Python knows.
    lines = (_text(path) or "").split("\n")
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for i, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            if i == len(lines) and not finished:
                break
            raise InputError(
                f"{path}, line {i}, is not valid JSON ({_reason(error)}): "
                "restore the file or leave out the run"
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("split"), str):
            raise InputError(f'{path}, line {i}: expected an object with a "split"')
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            raise InputError(f"{path}, line {i}: step is {step!r:.60}, expected an integer")
        rows[step, row["split"]] = row
    return tuple(rows[key] for key in sorted(rows))


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)[:100]
