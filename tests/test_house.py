"""The law of arrows, names and sizes: what keeps the source readable, held by reading it.

Nothing is imported here. Exceptions stand in `support/house_exceptions.py`; one that is no longer needed
fails the test, so that the lists only shrink.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from house_exceptions import ARROWS, CIRCLES, LINES, LONG, NAMES, PAGES, TWICE

SOURCE = Path(__file__).parent.parent / "src" / "regraft"

FLOORS = (
    {"cli", "recipes"},
    {"jobs", "integrations"},
    {"report", "train", "tickets", "symmetry", "features", "generators", "fewshot"},
    {"models", "data", "checkpoints"},
    {"config"},
    {""},
)
"""Folders by floor, the highest first, "" the files of the root: arrows go down or stay on a floor."""

METHODS = {"tickets", "symmetry", "features", "generators", "fewshot"}
BETWEEN_METHODS = {("fewshot", "tickets")}
"""Method folders that may import another."""

BANNED = {
    "asked",
    "given",
    "found",
    "told",
    "Bench",
    "Along",
    "Workshop",
    "Gathered",
    "Reading",
    "seen",
    "labelled",
}

MOST_LINES = {"": 40_000, "cli": 3_500}
NEW_SYSTEMS = (
    "fewshot/",
    "jobs/fewshot/",
    "recipes/metaticket/",
    "data/views.py",
    "data/operations.py",
    "config/generate.py",
    "cli/synth.py",
    "generators/sources/",
    "generators/pseudo/",
    "generators/mgr/",
    "jobs/generate/",
    "recipes/pseudo/",
    "recipes/mgr/",
)
"""Folders and files of the three systems that came after the limit on all lines, which is the others'."""

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_RECIPE = 600

FILES = {p.relative_to(SOURCE).as_posix(): p for p in sorted(SOURCE.rglob("*.py"))}


@cache
def trees() -> dict[str, ast.Module]:
    """Return what the files say, parsed once."""
    return {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def _file_of(module: list[str]) -> str | None:
    """Return the file of a dotted name inside the package, or None."""
    path = "/".join(module)
    choices = (f"{path}.py", f"{path}/__init__.py" if path else "__init__.py")
    return next((c for c in choices if c in FILES), None)


def _imports(name: str) -> set[str]:
    """Return the files that a file imports, anywhere in it, for types only included."""
    files: set[str | None] = set()
    for node in ast.walk(trees()[name]):
        if isinstance(node, ast.Import):
            dotted = [a.name.split(".") for a in node.names]
            files |= {_file_of(d[1:]) for d in dotted if d[0] == "regraft"}
        elif isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level:
                module = [*Path(name).parts[: -node.level], *module]
            elif module[:1] == ["regraft"]:
                module = module[1:]
            else:
                continue
            for alias in node.names:
                # A name of a package is a file in it, or what its __init__ passes on.
                files.add(_file_of([*module, alias.name]) or _file_of(module))
    return {f for f in files if f and f != name}


IMPORTS = {name: _imports(name) for name in FILES}


def _reachable(start: str) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for name in IMPORTS[waiting.pop()] - reached:
            reached.add(name)
            waiting.append(name)
    return reached


def _place(name: str) -> tuple[str, int]:
    """Return the folder of a file, "" for the root, and the number of its floor."""
    folder = name.split("/", maxsplit=1)[0].removesuffix(".py")
    floors = [i for i, folders in enumerate(FLOORS) if folder in folders]
    return (folder, floors[0]) if floors else ("", len(FLOORS) - 1)


def _allowed(name: str, imported: str) -> bool:
    (folder, floor), (other, below) = _place(name), _place(imported)
    if folder == other:
        return True
    if {folder, other} == {"cli", "recipes"}:
        return name == "cli/reproduce.py"
    if folder in METHODS and other in METHODS:
        return (folder, other) in BETWEEN_METHODS
    return floor <= below


def _identifiers(tree: ast.AST) -> set[str]:
    """Return the names that a file gives: classes, functions, parameters, fields and variables."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.arg(arg=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
    return names


def _exactly(broken: set[str], excepted: set[str]) -> None:
    new = sorted(broken - excepted)
    assert not new, f"{len(new)} new: {new}"
    held = sorted(excepted - broken)
    assert not held, f"these hold now, take them out of the list: {held}"


def test_no_two_files_import_each_other():
    reachable = {name: _reachable(name) for name in FILES}
    _exactly({name for name in FILES if name in reachable[name]}, CIRCLES)


def test_every_arrow_follows_the_law():
    arrows = ((name, other) for name in FILES for other in IMPORTS[name])
    _exactly({f"{a} -> {b}" for a, b in arrows if not _allowed(a, b)}, ARROWS)


def test_no_class_has_the_name_of_another():
    classes: dict[str, list[str]] = defaultdict(list)
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(name)
    _exactly({c for c, files in classes.items() if len(files) > 1}, TWICE)


def test_no_page_is_written_twice():
    pages = {name for name in FILES if Path(name).name == "page.py"}
    _exactly(pages if len(pages) > 1 else set(), PAGES)


def test_whole_model_files_have_one_writer():
    both = {
        name
        for name, tree in trees().items()
        if "checkpoints/model_card.py" in IMPORTS[name]
        and {"header", "write_tensors"}
        <= {
            n.func.id
            for n in ast.walk(tree)
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
    }
    _exactly(both, {"checkpoints/write.py"})


def test_modes_of_networks_have_one_keeper():
    """Who lists `module.training` of many modules keeps them, which `models/modes.py` does."""
    keepers = {
        name
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ListComp | ast.DictComp | ast.GeneratorExp)
        and any(
            isinstance(n, ast.Attribute) and n.attr == "training" and ast.unparse(n.value) != "self"
            for n in ast.walk(node)
        )
    }
    _exactly(keepers, {"models/modes.py"})


def test_where_images_lie_is_decided_in_one_place():
    """Who names both loaders chooses between memory and files, which `data/memory.py` does."""
    both = {
        name
        for name, tree in trees().items()
        if {"TensorLoader", "FolderLoader"}
        <= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    }
    _exactly(both, {"data/memory.py"})


def test_names_are_the_fields_words():
    broken = {
        f"{name}: {word}" for name, tree in trees().items() for word in _identifiers(tree) & BANNED
    } | {name for name in FILES if Path(name).stem.lower() in {w.lower() for w in BANNED}}
    _exactly(broken, NAMES)


def _lines(name: str) -> int:
    return len(FILES[name].read_text().splitlines())


def test_no_file_is_long():
    _exactly({name for name in FILES if _lines(name) > MOST_LINES_OF_A_FILE}, LONG)


def _files_of(folder: str) -> list[str]:
    if not folder:
        return [name for name in FILES if not name.startswith(NEW_SYSTEMS)]
    return [name for name in FILES if name.startswith(f"{folder}/")]


def _recipes() -> set[str]:
    return {
        "/".join(Path(n).parts[:2]) for n in FILES if n.startswith("recipes/") and n.count("/") > 1
    }


@pytest.mark.parametrize("folder", sorted({*MOST_LINES, *_recipes(), *LINES}))
def test_no_folder_is_long(folder):
    lines = sum(_lines(name) for name in _files_of(folder))
    most = MOST_LINES.get(folder, MOST_LINES_OF_A_RECIPE)
    assert lines <= max(most, LINES.get(folder, 0)), folder
    assert folder not in LINES or lines > most, f"take {folder!r} out of LINES: it has {lines}"
