import json
from dataclasses import replace
from pathlib import Path

import pytest

from regraft.cli.find import Find

QUICK = ("--epochs", 1, "--train-size", 100, "--batch-size", 20, "--width", 0.5)


def setting(**more):
    return Find(out=Path("x"), **more)._setting()


DIFFERENT = [
    {},
    {"frozen": 0.5},
    {"frozen": 0.25},
    {"pruned": 0.4, "locked": 0.1},
    {"frozen": 0.5, "allocation": "erk", "scope": "global"},
    {"frozen": 0.5, "scope": "global"},
    {"scope": "global"},
    {"dynamic_scale": True},
    {"graph_split": "random"},
    {"features": "l2"},
    {"method": "random_mask_trained", "allocation": "erk"},
]


def test_runs_that_are_not_alike_share_no_setting():
    found = [setting(**more) for more in DIFFERENT]
    assert len(set(found)) == len(found)


def test_runs_that_are_alike_share_their_setting():
    assert setting() == "digits/conv_small/signed_kaiming_constant/sparsity=0.5/width=1"
    assert setting(method="edge_popup", frozen=0.5) == setting(frozen=0.5)
    assert setting(pruned=0.25, locked=0.25) == setting(frozen=0.5)
    assert setting(seed=3, epochs=2) == setting()


def test_the_setting_is_in_the_run(answer, tmp_path):
    answer("ticket", "find", "--out", tmp_path / "run", *QUICK, "--frozen", 0.5)
    config = json.loads((tmp_path / "run" / "regraft.json").read_text())
    assert "/frozen=0.5" in json.dumps(config)


@pytest.mark.parametrize("option", [("--frozen", 0.5), ("--pruned", 0.1), ("--locked", 0.1)])
@pytest.mark.parametrize("method", ["dense", "random_mask_trained"])
def test_a_control_that_freezes_nothing_says_so(refused, method, option, tmp_path):
    words = ("ticket", "find", "--out", tmp_path / "run", *QUICK, "--method", method)
    assert f"{option[0]} has no effect on --method {method}" in refused(*words, *option)
    assert "--dynamic-scale has no effect" in refused(*words, "--dynamic-scale")
    assert not (tmp_path / "run").exists()


def test_uneven_freezing_says_which_scope_it_needs(answer, refused, tmp_path):
    words = ("ticket", "find", "--out", tmp_path / "run", *QUICK, "--method", "edge_popup")
    words += ("--frozen", 0.5, "--allocation", "erk")
    assert "add --scope global" in refused(*words)
    answer(*words, "--scope", "global")


def test_shares_that_cannot_be_are_refused_by_name(refused, tmp_path):
    words = ("ticket", "find", "--out", tmp_path / "run", *QUICK)
    assert "--pruned -0.5" in refused(*words, "--pruned", -0.5)
    assert "pruned" in refused(*words, "--pruned", 0.7, "--locked", 0.7)
    assert "sparsity=2" in refused(*words, "--sparsity", 2, "--frozen", 0.5)
    assert replace(Find(out=tmp_path), frozen=0.5)._shares() == {"pruned": 0.25, "locked": 0.25}
