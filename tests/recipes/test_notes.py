"""What is said of a mistake in the scales of a recipe, and how rows become dataclasses."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from regraft.config import DataConfig, OptimConfig
from regraft.errors import InputError
from regraft.recipes import RECIPES, SCALES, load_recipe
from regraft.recipes.notes import arm_names, named_rows, read_data, read_rows

WITH_ROWS = ("iterand", "merging", "metaticket", "transfer")


def broken(monkeypatch, name, change):
    """Let the scales of a recipe be what `change` makes of them."""
    data = copy.deepcopy(read_data(RECIPES[name], "scales.toml"))
    change(data)
    monkeypatch.setattr("regraft.recipes.notes.read_data", lambda *_: data)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", RECIPES)
def test_a_mistyped_key_is_named_with_its_file_and_row(name, scale, monkeypatch):
    there = read_data(RECIPES[name], "scales.toml").get(scale)
    if there is None:
        assert (name, scale) == ("frozen", "cpu")  # whose rows are those of chosen.toml
        return

    def change(data):
        data[scale][-1]["seds"] = data[scale][-1].pop("seeds")

    broken(monkeypatch, name, change)
    said = f"regraft/recipes/{name}/scales.toml: row {len(there)} of [[{scale}]]: key 'seds' is unk"
    with pytest.raises(InputError, match=re.escape(said) + "nown: expected seeds"):
        load_recipe(name, scale)


@pytest.mark.parametrize("name", WITH_ROWS)
def test_a_mistyped_key_of_a_table_in_a_row_is_named_with_the_table(name, monkeypatch):
    def change(data):
        data["cpu"][0]["runtime"]["thread"] = data["cpu"][0]["runtime"].pop("threads")

    broken(monkeypatch, name, change)
    said = "scales.toml: row 1 of [[cpu]]: runtime: key 'thread' is unknown: expected threads"
    with pytest.raises(InputError, match=re.escape(said)):
        load_recipe(name, "cpu")


@pytest.mark.parametrize("name", RECIPES)
def test_a_missing_key_and_a_missing_scale_are_named_with_their_file(name, monkeypatch):
    file = f"regraft/recipes/{name}/scales.toml: "
    broken(monkeypatch, name, lambda data: data["gpu"][0].pop("seeds"))
    with pytest.raises(InputError, match=re.escape(f"{file}row 1 of [[gpu]]: key 'seeds' is miss")):
        load_recipe(name, "gpu")
    broken(monkeypatch, name, lambda data: data.pop("paper"))
    with pytest.raises(InputError, match=re.escape(f"{file}[[paper]] is missing")):
        load_recipe(name, "paper")


@dataclass(frozen=True, kw_only=True)
class Row:
    data: DataConfig
    size: int | None = 3
    name: str = "x"
    then: OptimConfig | None = None
    further: Mapping[str, OptimConfig] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)


def rows(monkeypatch, table):
    monkeypatch.setattr("regraft.recipes.notes.read_data", lambda *_: {"rows": [table]})
    return read_rows("a.b", "c.toml", "rows", Row)


def test_tables_become_dataclasses_as_fields_have_them(monkeypatch):
    table = {
        "data": {"name": "digits", "only_classes": [1, 2]},
        "size": "all",
        "name": "all",
        "then": {"lr": 0.5},
        "further": {"slow": {"lr": 0.1}},
        "options": {"lr": {"widths": [1, 2]}},
    }
    assert rows(monkeypatch, table) == [
        Row(
            data=DataConfig(name="digits", only_classes=(1, 2)),
            size=None,
            name="all",
            then=OptimConfig(lr=0.5),
            further={"slow": OptimConfig(lr=0.1)},
            options={"lr": {"widths": [1, 2]}},
        )
    ]
    assert rows(monkeypatch, {"data": {}}) == [Row(data=DataConfig())]


def test_a_key_like_no_other_is_answered_with_all_that_there_are(monkeypatch):
    said = "a/b/c.toml: row 1 of [[rows]]: further: slow: key 'zz' is unknown: expected one of "
    with pytest.raises(InputError, match=re.escape(said + "optimizer, lr, momentum")):
        rows(monkeypatch, {"data": {}, "further": {"slow": {"zz": 1}}})


@dataclass(frozen=True, kw_only=True)
class Named:
    name: str
    key: str = ""
    pairs: tuple[tuple[int, ...], ...] | None = None
    steps: tuple[OptimConfig, ...] = ()


def test_rows_are_taken_by_key_or_name_and_lists_become_tuples_at_any_depth(monkeypatch):
    table = [
        {"name": "a", "pairs": [[1, 2], [3]]},
        {"name": "a", "key": "b", "steps": [{"lr": 0.5}]},
    ]
    monkeypatch.setattr("regraft.recipes.notes.read_data", lambda *_: {"net": table})
    assert named_rows("a.b", "c.toml", "net", Named, ["b", "a"]) == [
        Named(name="a", key="b", steps=(OptimConfig(lr=0.5),)),
        Named(name="a", pairs=((1, 2), (3,))),
    ]
    with pytest.raises(InputError, match=r"^c.toml has no net 'c': expected one of a, b$"):
        named_rows("a.b", "c.toml", "net", Named, ["a", "c"])


def test_a_list_of_arms_stands_for_its_arms(monkeypatch):
    monkeypatch.setattr(
        "regraft.recipes.notes.read_data", lambda *_: {"arms": {"core": ["base", "gda"]}}
    )
    known = ["base", "gda", "mgr"]
    assert arm_names("a.b", "c.toml", ["mgr", "core"], known=known) == ["mgr", "base", "gda"]
    with pytest.raises(InputError, match=r"a/b/c.toml: no arm 'bse': expected base"):
        arm_names("a.b", "c.toml", ["bse"])
    with pytest.raises(InputError, match="no arm 'zz': expected one of base, gda, core"):
        arm_names("a.b", "c.toml", ["zz"])
    with pytest.raises(InputError, match="no arms in a row: expected one of base, gda, mgr, core"):
        arm_names("a.b", "c.toml", [], known=known)
