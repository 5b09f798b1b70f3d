import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.recipes import RECIPES
from regraft.recipes.claims import above, below, difference, every, no_worse, over_settings, reaches
from regraft.recipes.compare import mean_gap
from regraft.recipes.notes import read_notes
from regraft.report import Claim, Estimate, Published, Result, Run


def run(setting, arm, seed, accuracy, **metrics):
    return Run(
        folder=Path("runs"),
        setting=setting,
        arm=arm,
        control=None if arm == "control" else "control",
        seed=seed,
        result=Result(metrics={"test_accuracy": accuracy, **metrics}),
    )


def pair(gains, setting="s", base=80.0):
    """Return runs of a control and of an arm that is better by `gains`, seed by seed."""
    return [
        one
        for seed, gain in enumerate(gains, start=1)
        for one in (
            run(setting, "control", seed, base + seed),
            run(setting, "arm", seed, base + seed + gain),
        )
    ]


# What decides.


@pytest.mark.parametrize(
    ("low", "high", "held"),
    [
        (0.1, 2.0, True),
        (-2.0, -0.1, False),
        (-1.0, 1.0, None),
        (0.0, 1.0, None),
        (None, None, None),
    ],
)
def test_an_interval_decides_where_it_does_not_hold_the_limit(low, high, held):
    mean = 0.5 if low is None else (low + high) / 2
    assert above()(Estimate(3, mean, low, high)) is held
    mirrored = Estimate(3, -mean, None if high is None else -high, None if low is None else -low)
    assert below()(mirrored) is held
    assert above()(None) is None


@pytest.mark.parametrize(
    ("low", "high", "held"),
    [
        (15.0, 38.0, True),  # it reaches 28
        (29.0, 38.0, True),  # and more
        (4.0, 9.0, False),  # a gain, but the published one is ruled out
        (-4.0, 9.0, False),
        (-9.0, -4.0, False),
        (-4.0, 40.0, None),  # wide enough to hold the gain, and none
        (None, None, None),
    ],
)
def test_a_published_gain_is_held_where_the_interval_reaches_it(low, high, held):
    mean = 20.0 if low is None else (low + high) / 2
    assert reaches(28.0)(Estimate(3, mean, low, high)) is held


@pytest.mark.parametrize(
    ("mean", "low", "high", "held"),
    [
        (0.1, -0.4, 0.6, True),
        (0.1, -0.6, 0.8, None),
        (-0.1, -0.4, 0.2, None),
        (-0.3, -0.5, -0.1, False),
        (0.1, None, None, None),
    ],
)
def test_no_worse_wants_a_mean_of_no_loss_and_an_interval_above_the_margin(mean, low, high, held):
    assert no_worse(0.5)(Estimate(5, mean, low, high)) is held


@given(st.lists(st.sampled_from([True, False, None]), max_size=5))
def test_every_is_and_with_an_open_answer(states):
    held = every(states)
    if False in states:
        assert held is False
    elif None in states or not states:
        assert held is None
    else:
        assert held is True


# Claims of runs.


def test_a_difference_says_its_numbers_and_its_state():
    runs = pair([2.0, 2.2, 1.8])
    (claim,) = difference(runs, "s", "arm", "control", "The arm is better", more="So be it.")
    assert (claim.paper, claim.held, claim.evidence) == ("The arm is better (s)", True, ["s"])
    assert claim.note.startswith("arm minus control: +2.00 [1.50, 2.50] points, more.")
    assert claim.note.endswith("So be it.")
    (claim,) = difference(runs, "s", "control", "arm", "The control is better")
    assert claim.state == "did not hold"
    (claim,) = difference(pair([2.0, -2.0, 1.0]), "s", "arm", "control", "p")
    assert claim.state == "undecided"
    assert "the interval holds zero" in claim.note


def test_one_seed_decides_nothing_and_no_shared_seed_makes_no_claim():
    (claim,) = difference(pair([50.0]), "s", "arm", "control", "p")
    assert claim.held is None
    assert "too few seeds" in claim.note
    alone = [run("s", "control", 1, 80.0), run("s", "arm", 2, 90.0)]
    assert difference(alone, "s", "arm", "control", "p") == []
    assert over_settings(alone, ["s"], "arm", "control", "p") == []


def test_published_figures_stand_beside_ours():
    runs = pair([26.0, 27.0, 28.0, 28.5])
    (claim,) = difference(
        runs, "s", "arm", "control", "p", gain=28.0, absolute={"arm": 93.0, "unknown": 1.0}
    )
    assert claim.held
    assert [(f.what, f.figure, f.unit) for f in claim.published] == [
        ("gain", 28.0, "points"),
        ("arm", 93.0, "%"),
    ]
    assert (
        "Beside the paper: gain: published 28 points, ours 27.4 [25.6, 29.1]; arm: published 93%"
        in claim.words
    )
    data = json.loads(json.dumps(claim.to_dict()))
    assert (data["state"], data["held"]) == ("held", True)
    assert data["published"][0] == {
        "what": "gain",
        "unit": "points",
        "published": 28.0,
        "ours": pytest.approx(27.375),
        "low": pytest.approx(25.611, abs=0.001),
        "high": pytest.approx(29.139, abs=0.001),
    }
    (claim,) = difference(pair([4.0, 5.0, 6.0]), "s", "arm", "control", "p", gain=28.0)
    assert claim.state == "did not hold"


def test_another_metric_may_be_better_where_it_is_smaller():
    runs = [
        run("s", arm, seed, 50.0, barrier=value + seed)
        for arm, value in (("arm", 1.0), ("control", 3.0))
        for seed in (1, 2, 3)
    ]
    more = {"metric": "barrier", "unit": "nats", "digits": 3, "decide": below()}
    (claim,) = difference(runs, "s", "arm", "control", "p", levels=True, **more)
    assert claim.held
    assert claim.note.startswith("arm 3.000 [")
    assert "-2.000 [-2.000, -2.000] nats." in claim.note


def test_over_settings_averages_within_a_seed_first():
    # Seeds differ much within a setting, and the other setting takes it back.
    runs = [*pair([5.0, 0.0, -4.0], "a"), *pair([-3.0, 2.0, 6.0], "b")]
    names = {"a": "width=1", "b": "width=2", "missing": "width=3"}
    (claim,) = over_settings(runs, names, "arm", "control", "Better", over="widths")
    assert claim.paper == "Better, mean over widths"
    assert claim.held is True
    assert claim.evidence == ["a", "b"]
    assert "+1.00 [1.00, 1.00] points, more, n = 3 seeds." in claim.note
    assert "width=1: +0.33" in claim.note
    (claim,) = over_settings(runs, names, "arm", "control", "Better", over="widths", each=True)
    assert claim.paper == "Better, at each of the widths"
    assert claim.held is None
    assert "Shown at 0 of 2 widths." in claim.note


def test_one_setting_that_turns_out_the_other_way_decides_for_each():
    runs = [*pair([5.0, 5.1, 4.9], "a"), *pair([-1.0, -1.1, -0.9], "b")]
    (claim,) = over_settings(runs, ["a", "b"], "arm", "control", "Better", each=True)
    assert claim.held is False
    (claim,) = over_settings(runs, ["a"], "arm", "control", "Better", each=True)
    assert claim.held is True


@given(
    st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=6),
)
def test_the_mean_over_settings_is_the_mean_of_each_seed(gains):
    runs = [*pair([a for a, _ in gains], "a"), *pair([b for _, b in gains], "b", base=10.0)]
    mean = mean_gap(runs, ["a", "b"], "arm", "control").mean
    assert mean == pytest.approx(math.fsum((a + b) / 2 for a, b in gains) / len(gains), abs=1e-9)


# Claims themselves.


def test_the_three_states_in_json_and_markdown():
    for held, state, said in (
        (True, "held", "Held"),
        (False, "did not hold", "Did not hold"),
        (None, "undecided", "Undecided"),
    ):
        claim = Claim(paper="By far.", held=held, evidence=["s"], note="By little.")
        assert claim.to_dict() == {
            "paper": "By far.",
            "state": state,
            "held": held,
            "evidence": ["s"],
            "note": "By little.",
        }
        assert claim.to_markdown() == f"- **{said}:** By far. By little. Evidence: s."


def test_a_published_figure_without_ours_says_so():
    figure = Published(what="accuracy", figure=93.5, unit="%", ours=None)
    assert str(figure) == "accuracy: published 93.5%, ours unknown"
    assert figure.to_dict() == {"what": "accuracy", "unit": "%", "published": 93.5}


# Prose.


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_notes(name):
    notes = read_notes(RECIPES[name])
    assert {"question", "scales", "reading"} <= notes.keys()
    assert notes["question"].endswith("?") or "." in notes["question"]
    for text in notes.values():
        assert not re.search(r"[^\n]\n[^\n\-]", text)  # lines of a paragraph are joined
        assert "  " not in text
