"""The folder that `regraft align` and `regraft merge` make: whose it is, and whether it is finished."""

from __future__ import annotations

import contextlib
import json as jsonlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = 1
CARD = "card.json"
# Not config.json, which is Hugging Face's in a folder that it reads as well.
_CONFIG = "regraft.json"
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.tmp|\.tmp[A-Za-z0-9]{6}")


def finished(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the card of a folder that the same command has finished, or None.

    Raises:
        InputError: Something else is there.
    """
    from regraft.config import digest
    from regraft.errors import InputError

    from . import read_json

    if not out.exists():
        return None
    if not out.is_dir():
        raise InputError(f"{out} is a file: give a folder to make")
    config = read_json(out / _CONFIG)
    if config is None:
        if any(out.iterdir()):
            raise InputError(
                f"{out} is not empty and no folder of this command (it has no {_CONFIG}): choose another"
            )
        return None
    if config.get("digest") != digest(identity):
        raise InputError(
            f"{out} is of another command ({_difference(config.get('config'), identity)}): choose "
            "another folder, or remove this one to start again"
        )
    return read_json(out / CARD)


@contextlib.contextmanager
def claimed(out: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """Hold the folder and say whose it is; a new one is removed again if the input was refused.

    Raises:
        InputError: Something else is there.
        RegraftError: Another process holds it; nothing in it is touched.
    """
    from regraft.config import digest
    from regraft.config.command import options_of
    from regraft.errors import InputError, MissingExtraError
    from regraft.files import make_folder, write_text

    make_folder(out)
    with _held(out):
        finished(out, identity)  # another process may have begun something else in it by now
        new = not (out / _CONFIG).exists()
        for path in out.iterdir():
            if _UNFINISHED.fullmatch(path.name):  # what a killed command was writing
                path.unlink()
        config = {"schema": SCHEMA, "digest": digest(identity), "config": identity}
        if new:
            write_text(out / _CONFIG, jsonlib.dumps({**config, **options_of(out)}, indent=2) + "\n")
        try:
            yield out
        except (InputError, MissingExtraError):
            if new and {p.name for p in out.iterdir()} <= {_CONFIG}:
                shutil.rmtree(out, ignore_errors=True)
            raise


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    """Keep other processes out of the folder.

    Raises:
        RegraftError: One holds it.
    """
    from regraft.errors import RegraftError

    try:
        import fcntl
    except ImportError:  # Windows has no flock; one process at a time is the user's care there
        yield
        return
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(handle), out.stat())
        except OSError:
            held = False
        if not held:  # or the other process has just refused its input and removed the folder
            raise RegraftError(
                f"{out} is being written by another process: wait for it or choose another folder"
            )
        yield
    finally:
        os.close(handle)


def write_card(out: Path, card: dict[str, Any]) -> dict[str, Any]:
    """Write the card, last of all, since it says that the folder is whole; return what is in it."""
    from regraft.files import write_text

    text = jsonlib.dumps({"schema": SCHEMA, **card}, indent=2) + "\n"
    write_text(out / CARD, text)
    return jsonlib.loads(text)


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "its options are not known"
    for key in {**found, **wanted}:
        if found.get(key) != wanted.get(key):
            if key == "files":
                return "a checkpoint has changed since"
            if key == "images":
                # Folders of before this was kept do not say.
                return (
                    "the images of --data have changed since"
                    if key in found
                    else "it does not say of which images of --data"
                )
            return f"{key}={found.get(key)!r} instead of {wanted.get(key)!r}"
    return "its options differ"
