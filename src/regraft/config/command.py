"""The command that is being carried out, for the folder it makes: what `--config` takes back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Command:
    """A verb, the folder that it makes, and its options as JSON.

    Attributes:
        verb: The words after `regraft`.
        folder: The folder; runs that lie elsewhere, below it as well, are not the verb's own.
        options: Every option by name, but for where the result goes and how it is printed.
    """

    verb: str
    folder: Path
    options: Mapping[str, Any]


_current: ContextVar[Command | None] = ContextVar("command", default=None)


@contextlib.contextmanager
def carrying_out(command: Command | None) -> Iterator[None]:
    """Let the folder of a command know its options while it runs."""
    token = _current.set(command)
    try:
        yield
    finally:
        _current.reset(token)


def options_of(folder: Path) -> dict[str, Any]:
    """Return the verb and options of the command that makes a folder, none of another folder."""
    command = _current.get()
    if command is None or command.folder.resolve() != folder.resolve():
        return {}
    return {"verb": command.verb, "options": dict(command.options)}
