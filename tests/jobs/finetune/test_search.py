import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.config import FinetuneConfig, OptimConfig, RuntimeConfig, SearchConfig
from regraft.errors import DivergenceError, InputError
from regraft.files import load_json
from regraft.jobs.finetune.engine import Tuner
from regraft.jobs.finetune.search import search
from regraft.jobs.finetune.settings import Rung, plan, settings
from regraft.jobs.finetune.trials import Trials


class Counted(Tuner):
    """A tuner whose accuracy is a function of the setting; it keeps what is trained."""

    def __init__(self, accuracy, method="adarand", seconds=0.1, used=None, **finetune):
        values = {
            "used": used,
            "metric": "accuracy",
            "accuracy": accuracy,
            "seconds": seconds,
            "finetune": FinetuneConfig(method=method, **finetune),
            "optim": OptimConfig(),
            "runtime": RuntimeConfig(),
            "trained": [],
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def measure(self):
        return self.seconds, 0.0

    def train(self, lr, weight, epochs, folder, progress=None, test=False):
        self.trained.append((lr, weight, epochs))
        accuracy = self.accuracy(lr, weight, epochs)
        if accuracy is None:
            raise DivergenceError("the loss became nan")
        metrics = {"validation_accuracy": accuracy, "validation_loss": 1.0, "selected_epoch": 0}
        return None, {"metrics": metrics, "seconds": 0.1}


def searched(tmp_path, counted, lr=None, epochs=9, **config):
    config = SearchConfig(**{"seconds": 1e6, **config})
    several = counted.finetune.method == "auto"
    return search(
        Trials(counted, tmp_path / "search", {}, several=several),
        settings(counted.finetune, "sgd", config, lr),
        config,
        tmp_path / "search.json",
        epochs=epochs,
        stage=lambda _: None,
    )


@pytest.mark.parametrize("target", list(itertools.product((0.01, 0.1, 0.001), (1.0, 0.1))))
def test_the_best_of_the_whole_grid_is_found_where_time_allows(tmp_path, target):
    def accuracy(lr, weight, epochs):
        return 90.0 if (lr, weight) == target else 50.0

    counted = Counted(accuracy)
    chosen, kept = searched(tmp_path, counted)
    assert (chosen.lr, chosen.weight) == target
    assert kept["chosen"] == {"method": "adarand", "lr": target[0], "weight": target[1]}
    assert len(counted.trained) == len(kept["trials"]) == 15
    assert {epochs for *_, epochs in counted.trained} == {9}
    assert load_json(tmp_path / "search.json", ours=True) == kept


def test_with_less_time_the_best_of_short_trials_go_on(tmp_path):
    counted = Counted(lambda lr, weight, epochs: -abs(lr - 0.03) - abs(weight - 0.3))
    chosen, kept = searched(tmp_path, counted, trials=9)
    assert kept["rungs"] == [{"trials": 9, "epochs": 3}, {"trials": 3, "epochs": 9}]
    first, second = counted.trained[:9], counted.trained[9:]
    ranked = sorted(first, key=lambda t: abs(t[0] - 0.03) + abs(t[1] - 0.3))
    assert [t[:2] for t in second] == [t[:2] for t in ranked[:3]]
    assert (chosen.lr, chosen.weight) == (0.03, 0.3)


def test_of_equal_trials_the_first_wins_and_a_diverged_one_is_out(tmp_path):
    counted = Counted(lambda lr, weight, epochs: None if lr == 0.01 else 70.0)
    chosen, kept = searched(tmp_path, counted, trials=6)
    assert chosen.lr == 0.03
    assert any("nan" in t.get("diverged", "") for t in kept["trials"])


def test_a_search_of_which_everything_diverges_says_so(tmp_path):
    with pytest.raises(DivergenceError, match="every trial of the search diverged"):
        searched(tmp_path, Counted(lambda *_: None), trials=2)


def test_a_finished_trial_is_not_trained_again(tmp_path):
    def accuracy(lr, weight, epochs):
        return 90.0 - lr

    first = Counted(accuracy)
    whole = searched(tmp_path, first, trials=4)
    again = Counted(accuracy, seconds=99.0)
    assert searched(tmp_path, again, trials=4) == whole
    assert again.trained == []


def test_a_plan_is_made_once_whatever_the_clock_says_later(tmp_path):
    def interrupted(lr, weight, epochs):
        if weight == 0.3:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, Counted(interrupted, seconds=1.0), seconds=40.0)
    rungs = json.loads((tmp_path / "search.json").read_text())["rungs"]
    slow = Counted(lambda *_: 1.0, seconds=1000.0)
    _, kept = searched(tmp_path, slow, seconds=40.0)
    assert kept["rungs"] == rungs
    assert len(slow.trained) == sum(r["trials"] for r in rungs) - 1


def test_values_that_are_named_are_the_grid():
    one = settings(FinetuneConfig(method="adarand", weight=0.7), "sgd", SearchConfig(), 0.5)
    assert [(s.lr, s.weight) for s in one] == [(0.5, 0.7)]
    plain = FinetuneConfig(method="plain")
    assert all(s.weight is None for s in settings(plain, "sgd", SearchConfig(), None))
    two = settings(plain, "sgd", SearchConfig(lr=(0.2, 0.4)), None)
    assert [s.lr for s in two] == [0.2, 0.4]
    assert settings(FinetuneConfig(method="lp_ft"), "sgd", SearchConfig(), None)[0].lr == 0.001


def test_methods_that_are_compared_have_as_many_settings_each(tmp_path):
    grid = settings(FinetuneConfig(method="auto"), "adamw", SearchConfig(), None)
    assert [s.method for s in grid] == ["plain", "adarand"] * 5
    assert grid[0].lr == grid[1].lr == 1e-4

    class Better(Counted):
        def using(self, setting):
            self.used.append(setting.method)
            return self

    counted = Better(lambda *_: 60.0 + 10 * (counted.used[-1] == "adarand"), method="auto", used=[])
    chosen, kept = searched(tmp_path, counted, trials=4)
    assert chosen.method == kept["chosen"]["method"] == "adarand"
    assert {t["method"] for t in kept["trials"]} == {"plain", "adarand"}
    assert (tmp_path / "search/3-epochs/plain-lr=0.01/result.json").exists()


def test_one_trial_is_the_first_setting_at_full_length(tmp_path):
    counted = Counted(lambda *_: 1.0)
    chosen, kept = searched(tmp_path, counted, trials=1)
    assert counted.trained == [(0.01, 1.0, 9)]
    assert (chosen.lr, chosen.weight) == (0.01, 1.0)
    assert kept["rungs"] == [{"trials": 1, "epochs": 9}]


@pytest.mark.parametrize("method", ["adarand", "l2sp", "bss", "supcon", "co_tuning"])
def test_grids_lie_around_the_methods_own_weight_and_start_with_it(method):
    found = settings(FinetuneConfig(method=method), "sgd", SearchConfig(), None)
    own = {"adarand": 1.0, "l2sp": 0.01, "bss": 1e-3, "supcon": 0.1, "co_tuning": 2.3}[method]
    assert (found[0].lr, found[0].weight) == (0.01, own)
    assert len(set(found)) == 15


def test_a_network_that_starts_from_its_probe_is_tried_at_small_rates_first():
    """With frozen statistics and images of another domain 1e-2 diverged, so the grid begins at 1e-3."""
    found = settings(FinetuneConfig(method="lp_ft"), "sgd", SearchConfig(), None)
    assert [s.lr for s in found] == [1e-3, 3e-3, 3e-4, 1e-2, 1e-4]


@given(
    count=st.integers(2, 15),
    epochs=st.integers(1, 40),
    seconds=st.floats(0.1, 1000),
    epoch=st.floats(0.01, 10),
    start=st.floats(0, 5),
)
def test_a_plan_fits_and_ends_with_something_to_compare(count, epochs, seconds, epoch, start):
    rungs = plan(count, epochs, seconds, epoch=epoch, start=start)
    two_short = 2 * (start + max(1, epochs // 3) * epoch)
    if rungs is None:
        assert two_short > seconds
        return
    assert sum(r.trials * (start + r.epochs * epoch) for r in rungs) <= seconds
    assert 2 <= rungs[0].trials <= count
    assert all(a.trials >= b.trials and a.epochs < b.epochs for a, b in itertools.pairwise(rungs))


def test_plans_by_time():
    found = {t: plan(15, 30, t, epoch=1.0, start=0.0) for t in (19, 30, 80, 120, 299, 300, 450)}
    assert found == {
        19: None,
        30: (Rung(3, 10),),
        80: (Rung(8, 10),),
        120: (Rung(6, 10), Rung(2, 30)),
        299: (Rung(14, 10), Rung(5, 30)),
        300: (Rung(15, 10), Rung(5, 30)),
        450: (Rung(15, 30),),
    }
    assert plan(5, 30, 110, epoch=1.0, start=0.0) == (Rung(5, 10), Rung(2, 30))


def test_a_budget_too_small_for_two_trials_says_what_would_do(tmp_path):
    with pytest.raises(
        InputError,
        match=r"--budget of 5 seconds: one trial takes about 3.0 s.*at least --budget 7s",
    ):
        searched(tmp_path, Counted(lambda *_: 1.0, seconds=1.0), seconds=5.0)
    assert not (tmp_path / "search.json").exists()
