"""`--config FILE`: the options of a written `regraft.json`, given back to the verb that wrote them."""

from __future__ import annotations

import dataclasses
import difflib
import json
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from regraft.config.check import option_of
from regraft.config.command import Command
from regraft.errors import InputError
from regraft.files import load_json

from .json_option import Values
from .options import Options, groups_of

UNSAID = ("out", "json", "config")
"""Options that say where the result goes and how it is printed, which no file repeats."""

_FILE = "regraft.json"


def command_of(verb: str, options: Options) -> Command | None:
    """Return what the folder of a verb says of its command; None for a verb that makes no such folder."""
    folder = options.folder()
    if folder is None:
        return None
    values = {k: v for k, v in options.values().items() if k not in UNSAID}
    return Command(verb, folder, json.loads(json.dumps(values, default=str)))


def split_config(words: list[str]) -> tuple[Path | None, list[str]]:
    """Return the file of --config, and the words without it.

    Raises:
        InputError: No file follows, or it stands there twice.
    """
    places = [i for i, word in enumerate(words) if word.partition("=")[0] == "--config"]
    if not places:
        return None, words
    if len(places) > 1:
        raise InputError("--config stands there twice: give one file")
    i, (_, joined, name) = places[0], words[places[0]].partition("=")
    if not joined and i + 1 == len(words):
        raise InputError("--config: expected a file, the regraft.json of a result")
    return Path(name or words[i + 1]), [*words[:i], *words[i + (1 if joined else 2) :]]


def defaults(path: Path, verb: str, kind: type[Options], words: list[str]) -> Options:
    """Return the options of a file, which those in `words` are going to override.

    Args:
        path: A `regraft.json`, or the result folder or the card beside it.
        verb: The words after `regraft`.
        kind: The verb's dataclass.
        words: The other words of the command line.

    Raises:
        InputError: There is no such file, or it is of another verb, has unknown options or values that
            an option cannot have.
    """
    file, values = _read(path, verb)
    hints = _hints(kind)
    for name in values:
        if name not in hints or name in UNSAID:
            near = difflib.get_close_matches(name, hints.keys() - UNSAID, n=1)
            cure = f"did you mean {near[0]!r}?" if near else f"regraft {verb} --help lists them"
            cure = f"say {option_of(name)} on the command line" if name in UNSAID else cure
            raise InputError(
                f"{file} has the option {name!r}, which no file for regraft {verb} has: {cure}"
            )
    # What may be said several times is replaced by the command line, not added to.
    typed = {word.partition("=")[0].replace("_", "-") for word in words}
    kept = {
        k: _typed(hints[k], v, f"{file}: {k}")
        for k, v in values.items()
        if option_of(k) not in typed
    }
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in kept:
            kept[f.name] = tyro.MISSING
    return kind.of(**kept)


def _read(path: Path, verb: str) -> tuple[Path, Values]:
    file = path / _FILE if path.is_dir() else path
    if file.name == "card.json":
        file = file.with_name(_FILE)
    try:
        content = load_json(file, ours=None)
    except OSError as error:
        raise InputError(f"--config {path}: {file} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"--config {path}: {file} is no JSON ({error})") from error
    options = content.get("options") if isinstance(content, dict) else None
    if not isinstance(options, dict) or not isinstance(content.get("verb"), str):
        raise InputError(
            f"--config {path}: {file} has no `verb` and `options`, which the folders of verbs have; those "
            "of recipes and of the library are not started by one"
        )
    if content["verb"] != verb:
        raise InputError(
            f"--config {path}: {file} is of `regraft {content['verb']}`, not of `regraft {verb}`"
        )
    return file, options


def _hints(kind: type[Options]) -> Values:
    """Return the type of every option, those of groups among them."""
    groups, hints = groups_of(kind), get_type_hints(kind)
    flat = {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.name not in groups}  # type: ignore[arg-type]
    for group in groups.values():
        flat |= _hints(group)
    return flat


def _typed(hint: Any, value: Any, what: str) -> Any:
    """Return a JSON value as an option has it.

    Raises:
        InputError: The option cannot have it.
    """
    origin, kinds = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _typed(kinds[0], value, what)
    if origin in (Union, UnionType):
        inner = next(k for k in kinds if k is not NoneType)
        return None if value is None else _typed(inner, value, what)
    if origin is Literal:
        fits, expected = value in kinds, f"one of {', '.join(map(str, kinds))}"
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_typed(kinds[0], item, what) for item in value)
        fits, expected = False, "a list"
    elif hint is Path:
        fits, expected = isinstance(value, str), "a path"
        value = Path(value) if fits else value
    elif hint is float:
        fits = type(value) is float or (type(value) is int and abs(value) < 1 << 1000)
        value, expected = float(value) if fits else value, "a number"
    else:
        names = {bool: "true or false", int: "a whole number", str: "text"}
        fits, expected = type(value) is hint, names.get(hint, str(hint))
    if not fits:
        raise InputError(f"{what} is {value!r:.60}: expected {expected}")
    return value
