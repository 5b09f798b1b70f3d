from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from regraft.config.fewshot import UNTRAINED
from regraft.errors import InputError
from regraft.jobs.base import with_sources
from regraft.jobs.fewshot.job import FewshotJob
from regraft.recipes import load_recipe
from regraft.recipes.metaticket.claims import read
from regraft.recipes.metaticket.rates import AT_RATE
from regraft.recipes.notes import read_data
from regraft.report import Result, Run


def test_every_scale_has_the_untrained_network_in_every_setting():
    for scale in ("smoke", "cpu", "gpu", "paper"):
        jobs = load_recipe("metaticket", scale, 1).jobs
        arms = {}
        for job in (j for j in jobs if isinstance(j, FewshotJob)):
            arms.setdefault(job.setting, set()).add(job.arm)
        assert all({"untrained", "meta-ticket", "random-mask", "maml"} <= a for a in arms.values())
        assert len(with_sources(jobs)) == len(jobs)


def compared(scale):
    """The jobs that are reported, by setting, without the arm that has more steps on purpose."""
    settings = {}
    for job in load_recipe("metaticket", scale, 1).jobs:
        if isinstance(job, FewshotJob) and job.arm != "maml-equal-time":
            settings.setdefault(job.setting, []).append(job)
    return settings


def test_arms_of_a_setting_share_data_episodes_and_steps():
    for same in compared("cpu").values():
        assert len({(j.outer.steps, j.outer.tasks, j.test_tasks, str(j.data)) for j in same}) == 1


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_every_trained_arm_has_its_rate_chosen_among_as_many(scale):
    for same in compared(scale).values():
        for job in same:
            if job.fewshot.method in UNTRAINED:
                assert job.choice is None
                continue
            trials = job.choice.trials
            assert len(trials) == 15
            seeds = {t.runtime.seed for t in trials}
            assert len({t.outer.lr for t in trials}) == 5
            assert len(seeds) == 3
            assert seeds.isdisjoint(range(1, 10))
            assert {t.fewshot.method for t in trials} == {job.fewshot.method}
            assert all(not t.tests for t in trials)  # held-out classes of the training set choose


def test_a_method_without_rates_is_named_with_its_file(monkeypatch):
    data = read_data("regraft.recipes.metaticket", "scales.toml")
    rates = data["selection"][0]["rates"]
    rates["mmal"] = rates.pop("maml")
    monkeypatch.setattr("regraft.recipes.notes.read_data", lambda *_: data)
    with pytest.raises(
        InputError, match=r"metaticket/scales.toml: \[selection.rates\]: key 'maml' is"
    ):
        load_recipe("metaticket", "cpu")


def test_the_widths_and_the_headline_of_the_cpu_scale():
    jobs = load_recipe("metaticket", "cpu").jobs
    seeds = Counter((j.setting, j.arm) for j in jobs)
    for width, n in ((1, 6), (2, 3), (4, 3)):
        setting = f"omniglot/5way-1shot/transductive/width={width}"
        assert seeds[setting, "meta-ticket"] == seeds[setting, "maml"] == n
    assert seeds["omniglot/20way-1shot/transductive/width=1", "maml"] == 3
    assert seeds["omniglot/5way-5shot/transductive/width=1", "maml"] == 3


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_no_domain_has_fewer_classes_than_ways(scale):
    for job in load_recipe("metaticket", scale, 1).jobs:
        if isinstance(job, FewshotJob) and job.episodes.ways > 10:
            assert {"mnist", "fashion_mnist", "digits"}.isdisjoint(job.tests)


@pytest.mark.parametrize("method", ["maml", "meta-ticket"])
def test_methods_have_rates_beside_the_chosen_one(method):
    jobs = [j for j in load_recipe("metaticket", "rates", 1).jobs if isinstance(j, FewshotJob)]
    own = {j.arm: j for j in jobs if j.fewshot.method == method}
    chosen = own.pop(method)
    assert set(own) == {f"{method}{AT_RATE}{j.outer.lr:g}" for j in own.values()}
    assert len(own) == 3
    assert chosen.choice is not None
    alike = replace(chosen, arm="", choice=None)
    assert all(replace(j, arm="", outer=alike.outer) == alike for j in own.values())


@pytest.mark.parametrize(("low", "held"), [(50.0, True), (60.0, None), (70.0, False)])
def test_the_ticket_is_held_against_maml_at_every_rate(low, held):
    every = [
        replace(r, result=Result(metrics={**r.result.metrics, "lr": 0.1, **better(r, 5.0)}))
        if r.arm == "meta-ticket"
        else replace(r, result=Result(metrics={**r.result.metrics, "lr": 0.1}))
        for r in runs()
    ]
    for r in [r for r in every if r.arm == "maml"]:
        metrics = dict.fromkeys(r.result.metrics, low + r.seed - 2)
        every.append(replace(r, arm=f"maml{AT_RATE}0.001", result=Result(metrics=metrics)))
    findings = read(every, [])
    claims = [c for c in findings.claims if "at every outer rate" in c.paper]
    assert len(claims) == 6  # the own domain and two sets, two policies
    mnist = next(c for c in claims if "better on mnist" in c.paper)
    assert mnist.held is held
    assert "chosen at home: " in mnist.note
    assert f"| maml{AT_RATE}0.001 |" in findings.text
    assert "trade-off" in findings.figures
    assert "trade-off" not in read(runs(), []).figures
    assert not [c for c in read(runs(), []).claims if "at every outer rate" in c.paper]


@pytest.mark.parametrize(
    ("home", "away", "held"), [(60, 50, True), (60, 66, None), (60, 90, False)]
)
def test_the_ticket_is_held_against_maml_of_its_accuracy_at_home(home, away, held):
    """MAML has 80 at home and 40 on MNIST, or `home` and `away`; the ticket 70 and 55, half way."""
    every = []
    for seed, shift in ((1, -0.1), (2, 0.0), (3, 0.1)):
        for arm, here, there in (
            ("meta-ticket", 70.0, 55.0),
            ("maml", 80.0, 40.0),
            (f"maml{AT_RATE}0.001", float(home), float(away)),
            (f"maml{AT_RATE}0.3", 65.0, 0.0),  # too high a rate: worse at home and elsewhere
        ):
            wide = 40 * shift if arm == "meta-ticket" else 0.0
            metrics = {"test_accuracy": here + shift, "mnist_accuracy": there + wide, "lr": 0.1}
            every.append(replace(runs()[0], arm=arm, seed=seed, result=Result(metrics=metrics)))
    (claim,) = [c for c in read(every, []).claims if "of the same accuracy" in c.paper]
    assert claim.held is held
    assert f"two rates around it: {55 - (away + 40) / 2:+.2f} [" in claim.note


def better(run, points):
    """A run's accuracies on other domains, so much higher."""
    return {k: v + points for k, v in run.result.metrics.items() if "mnist" in k}


def runs():
    """Two seeds in which the ticket beats its controls and ties with MAML."""
    levels = {"untrained": 50.0, "random-mask": 51.0, "meta-ticket": 70.0, "maml": 70.0}
    out = []
    for arm, value in levels.items():
        for seed in (1, 2, 3):
            shift = {1: -0.1, 2: 0.0, 3: 0.1}[seed]
            tie = shift * 5 if arm == "maml" else 0.0
            metrics = {
                f"{name}_accuracy{end}": value + shift + tie - low
                for name, low in (("test", 0), ("mnist", 15), ("emnist", 20))
                for end in ("", "_by_support")
            }
            history = tuple(
                {"step": s, "epoch": s, "split": "validation", "accuracy": value, "loss": 1.0,
                 "emnist_accuracy": 40.0, "mnist_accuracy": 40.0,
                 **({"sparsity/a.weight": 0.1 * s} if arm == "meta-ticket" else {})}
                for s in (1, 2)
            )  # fmt: skip
            out.append(
                Run(
                    folder=Path(arm, str(seed)),
                    setting="omniglot/5way-1shot/transductive/width=1",
                    arm=arm,
                    control=None,
                    seed=seed,
                    history=history,
                    result=Result(metrics=metrics),
                )
            )
    return out


def test_claims_are_read_off_intervals():
    findings = read(runs(), [])
    held = {c.paper: c.held for c in findings.claims}
    mask = next(h for p, h in held.items() if "control random-mask" in p)
    tie = next(h for p, h in held.items() if "better than MAML" in p)
    assert (mask, tie) == (True, None)
    assert "| untrained | 50.0" in findings.text
    assert "Learned sparsity by layer, from the input on: 0.20." in findings.text
    assert {"sparsity", "domains", "matched"} <= set(findings.figures)


def timed(ticket, maml):
    """The ticket 20 points above MAML of as many seconds, with the seconds that each took."""
    every = runs()
    both = [
        replace(r, arm=arm, result=Result(metrics=r.result.metrics, seconds=took))
        for source, arm, took in (
            ("meta-ticket", "meta-ticket", ticket),
            ("untrained", "maml-equal-time", maml),
        )
        for r in every
        if r.arm == source
    ]
    return [r for r in every if r.arm != "meta-ticket"] + both


@pytest.mark.parametrize(
    ("maml", "held", "said"),
    [
        (54.0, True, "Training took 60.0 s (meta-ticket) and 54.0 s (maml-equal-time)."),
        (50.0, None, "60.0 s (meta-ticket) and 50.0 s (maml-equal-time): not equal seconds"),
        (72.0, None, "60.0 s (meta-ticket) and 72.0 s (maml-equal-time): not equal seconds"),
        (None, None, "unknown seconds (maml-equal-time): not equal seconds"),
    ],
)
def test_equal_seconds_are_measured(maml, held, said):
    claims = read(timed(60.0, maml), []).claims
    claim = next(c for c in claims if "MAML of as many seconds" in c.paper)
    assert claim.held is held
    assert said in claim.note


def test_a_run_that_diverged_is_named_and_its_curves_are_left_out():
    metrics = {**runs()[3].result.metrics, "diverged": 1.0}
    every = [
        replace(r, history=(), result=Result(metrics=metrics))
        if (r.arm, r.seed) == ("meta-ticket", 3)
        else r
        for r in runs()
    ]
    findings = read(every, [])
    where = "omniglot/5way-1shot/transductive/width=1 meta-ticket seed 3"
    assert f"Diverged, and counted with the accuracy of guessing: {where}." in findings.text
    assert "Learned sparsity by layer, from the input on: 0.20." in findings.text
