"""What stands beside the code of a recipe: prose in `notes.md`, read by heading, and tables of data."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib.resources import files
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from regraft.errors import InputError

_R = TypeVar("_R")


def read_notes(package: str) -> dict[str, str]:
    """Return the texts of `notes.md` of a recipe's package by their headings, in lower case.

    The file parts itself by lines `## Heading`; what stands before the first is for its readers alone.
    Every recipe has at least `question`, `scales` and `reading`.

    Args:
        package: The package, `regraft.recipes.iterand`: `__package__` of the module that asks.
    """
    text = files(package).joinpath("notes.md").read_text("utf-8")
    parts = re.split(r"^## +(.+?) *$", text, flags=re.MULTILINE)[1:]
    return {
        heading.lower(): re.sub(r"(?<!\n)\n(?![\n\-|*#]) *", " ", body.strip())
        for heading, body in zip(parts[::2], parts[1::2], strict=True)
    }


def read_data(package: str, name: str) -> dict[str, Any]:
    """Return the tables of a TOML file of a recipe's package: settings that are data, not code."""
    return tomllib.loads(files(package).joinpath(name).read_text("utf-8"))


def read_rows(package: str, name: str, table: str, kind: type[_R]) -> list[_R]:
    """Return the rows `[[table]]` of a TOML file of a recipe's package, each as the dataclass `kind`.

    Tables become the dataclasses that its fields are of, lists tuples where a field has one. "all" is
    None, which TOML lacks, of a number that may be None.

    Raises:
        InputError: There is no such table, or a key is unknown or missing; it names file, row and key.
    """
    file = f"{package.replace('.', '/')}/{name}"
    rows = read_data(package, name).get(table)
    if not rows:
        raise InputError(f"{file}: [[{table}]] is missing")
    return [_typed(kind, row, f"{file}: row {i} of [[{table}]]") for i, row in enumerate(rows, 1)]


def named_rows(
    package: str, name: str, table: str, kind: type[_R], names: Sequence[str]
) -> list[_R]:
    """Return the rows of a table that are called so, in the order of the names; see `read_rows`.

    A row is called by its `key`, or by its `name` where it has none.

    Raises:
        InputError: There is none of a name.
    """
    rows = read_rows(package, name, table, kind)
    by_name = {getattr(row, "key", None) or getattr(row, "name", None): row for row in rows}
    if unknown := [n for n in names if n not in by_name]:
        known = ", ".join(map(str, by_name))
        raise InputError(f"{name} has no {table} {unknown[0]!r}: expected one of {known}")
    return [by_name[n] for n in names]


def arm_names(
    package: str, name: str, words: Sequence[str], *, known: Collection[str] | None = None
) -> list[str]:
    """Return names of arms, where words stand for themselves or for a list of `[arms]` of the file.

    Args:
        package: The recipe's package.
        name: The file.
        words: Arms and lists.
        known: Every arm that there is; those of all lists by default.

    Raises:
        InputError: There is no such arm, or no word.
    """
    lists = read_data(package, name)["arms"]
    names = [arm for word in words for arm in lists.get(word, (word,))]
    known = known or list(dict.fromkeys(arm for arms in lists.values() for arm in arms))
    unknown = [arm for arm in names if arm not in known]
    if unknown or not names:
        near = difflib.get_close_matches((unknown or [""])[0], [*known, *lists], n=1)
        there = near or [f"one of {', '.join([*known, *lists])}"]
        what = f"no arm {unknown[0]!r}" if unknown else "no arms in a row"
        raise InputError(f"{package.replace('.', '/')}/{name}: {what}: expected {there[0]}")
    return names


def _typed(hint: Any, value: Any, where: str) -> Any:
    kinds = (hint, *get_args(hint))
    if value == "all" and NoneType in kinds:
        return None
    several = next((kind for kind in kinds if get_origin(kind) is tuple), None)
    if isinstance(value, list) and several is not None:
        return tuple(_typed(get_args(several)[0], inner, where) for inner in value)
    kind = next(filter(is_dataclass, kinds), None)
    if kind is None or not isinstance(value, dict):
        return value
    if get_origin(hint) is Mapping:
        return {key: _typed(kind, inner, f"{where}: {key}") for key, inner in value.items()}
    names = [f.name for f in fields(kind)]
    for key in value:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1) or [f"one of {', '.join(names)}"]
            raise InputError(f"{where}: key {key!r} is unknown: expected {near[0]}")
    for f in fields(kind):
        if f.name not in value and f.default is MISSING and f.default_factory is MISSING:
            raise InputError(f"{where}: key {f.name!r} is missing")
    hints = get_type_hints(kind)
    return kind(**{k: _typed(hints[k], inner, f"{where}: {k}") for k, inner in value.items()})
