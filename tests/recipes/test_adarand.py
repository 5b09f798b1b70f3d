import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from adarand_runs import CPU, QUICK, SETTING, TASK, module, quick

from regraft.errors import InputError
from regraft.jobs.finetune.tuned_job import TunedJob
from regraft.jobs.finetune.tuned_select import SelectJob
from regraft.recipes import SCALES, load_recipe, reproduce
from regraft.recipes.adarand.arms import ARMS, PUBLISHED, transfer
from regraft.recipes.adarand.claims import by_pair, read
from regraft.recipes.notes import read_data
from regraft.recipes.selection import lasts
from regraft.recipes.trials import Budget
from regraft.report import Result, Run, rows

MAIN_ARMS = read_data("regraft.recipes.adarand", "scales.toml")["arms"]["main"]

# What is run.


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
def test_every_arm_is_tuned_with_as_many_trials_and_not_on_seeds_that_are_reported(scale):
    jobs = load_recipe("adarand", scale, 2).jobs
    transfers = [job for job in jobs if isinstance(job, TunedJob)]
    reported = {job.runtime.seed for job in transfers}
    assert {len({str(t) for t in job.choice.grid}) for job in transfers} in ({6}, {9})
    for job in transfers:
        assert min(job.choice.seeds) > 1000 > max(reported)
        tried = job.with_seed(job.choice.seeds[0]).task.config()
        assert job.choice.config()["task"] == tried
        assert (job.choice.arm, job.choice.grid[0].method) == (job.arm, job.tuning.method)
        assert (job.arm == "scratch") == (job.task.source is None)
    places = {job.folder(Path()): i for i, job in enumerate(jobs)}
    for job in jobs:
        assert all(places[s.folder(Path())] < places[job.folder(Path())] for s in job.sources)


@pytest.mark.parametrize("scale", ["photographs", "characters"])
def test_stages_have_as_many_trials_for_every_arm_and_three_seeds(scale):
    jobs = load_recipe("adarand", scale).jobs
    transfers = [job for job in jobs if isinstance(job, TunedJob)]
    counts = {len(j.choice.grid) + sum(map(len, j.choice.then)) for j in transfers}
    assert counts == {9}
    assert {len(j.choice.seeds) for j in transfers} == {3}
    assert {j.runtime.seed for j in transfers} == {1, 2, 3, 4, 5}
    ours = next(j for j in transfers if j.arm == "adarand")
    (first,) = {t.weight for t in ours.choice.grid}
    weights = [first, *(first * v["weight"] for v in ours.choice.then[0])]
    assert (min(weights), max(weights)) == (0.03, 5.0)
    scales = [v["options"]["prior_scale"] for v in ours.choice.then[1]]
    assert scales == pytest.approx([0.0, 1 / 3, 3.0], abs=1e-3)
    assert ours.task.optim.epochs >= 200


def test_a_scale_of_one_recipe_is_refused_by_others():
    with pytest.raises(InputError, match="scale 'photographs' is unknown: expected one of smoke"):
        load_recipe("frozen", "photographs")


def test_the_lists_of_arms_are_those_of_the_arms():
    lists = read_data("regraft.recipes.adarand", "scales.toml")["arms"]
    assert (lists["every"], lists["published"]) == ([*ARMS], [*PUBLISHED])


@pytest.mark.parametrize("changes", [{"shots": ()}, {"shares": (0.5,)}, {"models": 2}])
def test_a_row_without_a_size_or_with_settings_of_one_name_is_refused(changes):
    (row, *_) = module.settings("smoke")
    if "models" in changes:
        changes = {"models": row.models * 2}
    with pytest.raises(
        InputError, match="a row of digits=0-4 needs shots, of one network, or shares"
    ):
        dataclasses.replace(row, **changes).tasks()


def test_the_scale_cpu_asks_what_it_must_show():
    jobs = [job for job in load_recipe("adarand", "cpu").jobs if isinstance(job, TunedJob)]
    arms = {}
    for job in jobs:
        arms.setdefault(job.setting, {}).setdefault(job.arm, set()).add(job.runtime.seed)
    pairs = by_pair(arms)
    assert list(pairs["emnist-to-mnist"]) == list(pairs["emnist-to-fashion_mnist"])
    assert list(pairs["emnist-to-mnist"]) == [5, 10, 25, 100]
    for setting, found in arms.items():
        everything = setting.endswith("mnist/shots=5")
        assert set(found) == set(ARMS if everything else MAIN_ARMS), setting
        assert {len(seeds) for seeds in found.values()} == {10}


def test_the_paper_scale_holds_the_published_settings():
    jobs = {(j.setting, j.arm): j for j in load_recipe("adarand", "paper", 1).jobs}
    cars = "imagenet-to-stanford_cars"
    job = jobs[f"{cars}/resnet50/share=1", "adarand"]
    optim = job.task.optim
    assert (optim.lr, optim.epochs, optim.batch_size) == (0.01, 200, 64)
    assert (optim.momentum, optim.nesterov, optim.weight_decay) == (0.9, True, 0.0)
    assert optim.schedule == "multistep-30-60-80"
    assert (job.tuning.weight, job.tuning.lr, job.choice) == (1.0, 0.01, None)
    assert dict(job.tuning.options) == {"normalise": False, "prior_lr": 1e-2, "alpha": 0.5}
    assert job.task.pretrained
    transformer = jobs[f"{cars}/vit_b_16/share=1", "l2sp"].task.optim
    assert (transformer.optimizer, transformer.lr, transformer.weight_decay) == ("adamw", 3e-5, 0)
    assert jobs[f"{cars}/vit_b_16/share=1", "plain"].task.optim.weight_decay == 0.1
    assert list(by_pair(s for s, _ in jobs)[f"{cars}/resnet50"]) == [0.1, 0.25, 0.5, 1]
    sets = {s.split("/")[0].removeprefix("imagenet-to-") for s, _ in jobs}
    assert sets == {"stanford_cars", "cub", "dtd", "aircraft", "flowers", "pets"}


@pytest.mark.parametrize("scale", SCALES)
def test_what_changes_no_number_is_no_part_of_the_identity(scale):
    job = load_recipe("adarand", scale, 1).jobs[-1]
    elsewhere = job.with_data_root("elsewhere")
    assert elsewhere.config() == job.config()
    assert elsewhere.task.data.root == "elsewhere"
    hasty = dataclasses.replace(job, runtime=dataclasses.replace(job.runtime, checkpoint_seconds=0))
    assert hasty.config() == job.config()
    assert job.with_seed(4).config() != job.config()
    json.dumps(job.config())


def test_options_with_levels_meet_every_rate_and_every_weight_once():
    """A Latin square: as many trials as for the other arms, no pair of values twice."""
    grid = Budget().grid(ARMS["adarand"])
    assert len(grid) == 9
    triples = [(t.lr, t.weight, t.options["prior_lr"]) for t in grid]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert len({(t[one], t[two]) for t in triples}) == 9


# What is read.


def runs_of(setting, gains, seeds=(1, 2, 3, 4), noise=0.1, **metrics):
    found = []
    for arm, gain in gains.items():
        for seed in seeds:
            value = 60.0 + seed + gain + noise * (-1) ** seed * (arm != "plain")
            found.append(
                Run(
                    folder=Path(),
                    setting=setting,
                    arm=arm,
                    control=None if arm == "plain" else "plain",
                    seed=seed,
                    result=Result(metrics={"test_accuracy": value, **metrics}, seconds=1.0),
                )
            )
    return found


def claims_of(runs):
    return {c.paper: c for c in read(runs, rows(runs)).claims}


@pytest.mark.parametrize(("second", "held"), [(2.0, True), (0.0, None), (-1.0, False)])
def test_the_order_has_to_hold_at_the_smallest_size_of_two_pairs(second, held):
    gains = {"plain": 0.0, "scratch": -20.0}
    found = [
        *runs_of("emnist-to-mnist/shots=5", {**gains, "adarand": 2.0}),
        *runs_of("emnist-to-mnist/shots=25", {**gains, "adarand": -5.0}),
        *runs_of("emnist-to-digits/shots=5", {**gains, "adarand": second}),
    ]
    claims = claims_of(found)
    (claim,) = [c for paper, c in claims.items() if "two pairs or more" in paper]
    assert claim.held is held
    assert claim.evidence == ["emnist-to-mnist/shots=5", "emnist-to-digits/shots=5"]
    (own,) = [c for p, c in claims.items() if p.endswith("(emnist-to-digits/shots=5)")]
    assert own.held is held
    worse = runs_of("emnist-to-digits/shots=5", {**gains, "scratch": 3.0, "adarand": 2.0})
    (own,) = [c for p, c in claims_of(worse).items() if "from scratch" in p]
    assert not own.held


def test_it_is_said_where_a_frozen_prior_or_a_rival_does_as_well():
    pair = "emnist-to-mnist"
    others = dict.fromkeys(("l2sp", "bss", "delta", "supcon", "bitfit"), 0.5)
    found = [
        *runs_of(f"{pair}/shots=5", {"plain": 0, "adarand": 2, "randreg_class": 1, **others}),
        *runs_of(f"{pair}/shots=10", {"plain": 0, "adarand": 1, "randreg_class": 2}),
    ]
    reading = read(found, rows(found))
    claims = {c.paper: c for c in reading.claims}
    (prior,) = [c for paper, c in claims.items() if "frozen class prior" in paper]
    assert not prior.held
    assert "5 images a class: +1.00" in prior.note
    assert "10 images a class: -1.00" in prior.note
    assert prior.note.count("less") == 1
    (every,) = [c for paper, c in claims.items() if "every rival" in paper]
    assert every.held
    assert "randreg_class, up to 5 images a class, not from 10 on" in reading.text
    assert "plain, at every size measured (5, 10 images a class)" in reading.text
    assert "10: randreg_class" in reading.text
    found += runs_of(f"{pair}/shots=5", {"core_tuning": 2.0, "dr_tune": 4.0})
    (every,) = [c for paper, c in claims_of(found).items() if "every rival" in paper]
    assert not every.held
    assert "Undecided, AdaRand minus rival: core_tuning (+0.00" in every.note
    assert "Worse than: dr_tune (-2.00" in every.note


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ([(5, True), (10, True)], "at every size measured (5, 10 images a class)"),
        ([(5, False), (10, False)], "at no size measured (5, 10 images a class)"),
        ([(5, True), (10, False), (25, False)], "up to 5 images a class, not from 10 on"),
        ([(5, False), (10, True)], "at 10 images a class only"),
        ([(5, True), (10, False), (25, True)], "at 5, 25 images a class only"),
    ],
)
def test_sizes_in_words(shown, words):
    assert lasts(dict(shown), "images a class") == words


def test_runs_that_diverged_are_named():
    found = runs_of("a-to-b/shots=5", {"plain": 0.0, "adarand": 1.0})
    found += runs_of("a-to-b/shots=5", {"delta": -50.0}, seeds=(1,), diverged=1.0)
    assert "guessing: a-to-b/shots=5 delta seed 1." in read(found, rows(found)).text


@pytest.mark.parametrize("more", [True, False])
def test_the_analysis_is_read_from_the_features(more):
    found = []
    for arm, information in (("plain", 5.0), ("adarand", 9.0 if more else 4.0)):
        for run in runs_of("a-to-b/shots=5", {arm: 0.0}):
            metrics = {**run.result.metrics, "mutual_information": information + 0.1 * run.seed}
            found.append(
                dataclasses.replace(run, result=dataclasses.replace(run.result, metrics=metrics))
            )
    (claim,) = [c for paper, c in claims_of(found).items() if "mutual information" in paper]
    assert claim.held is more


# From the command to the report.


def test_the_smoke_scale_in_short_leaves_its_tables_and_figures(monkeypatch, tmp_path):
    """Every arm of the scale, each with its choice, at a tenth of the steps."""
    larger = dataclasses.replace(TASK, shots=20)
    setting = SETTING.replace("shots=5", "shots=20")
    more = transfer(setting, larger, MAIN_ARMS[:4], budget=QUICK, runtime=CPU)
    whole = load_recipe("adarand", "smoke", 1).jobs
    groups = [SimpleNamespace(seeds=3, jobs=lambda: [*quick(tuple(ARMS)), *more])]
    monkeypatch.setattr(module, "settings", lambda scale: groups)
    recipe = load_recipe("adarand", "smoke", 1)
    assert {(job.setting, job.arm) for job in recipe.jobs} == {(j.setting, j.arm) for j in whole}
    assert all(isinstance(j.choice, SelectJob) for j in whole if isinstance(j, TunedJob))
    outcome = reproduce(recipe, tmp_path / "runs", workers=1, results=tmp_path)
    page = (tmp_path / "adarand_smoke.md").read_text()
    for words in (
        "Test accuracy",
        "mutual information",
        "Chosen for",
        "AdaRand beats",
    ):
        assert words in page
    names = {p.name.removeprefix("adarand_smoke-") for p in tmp_path.glob("*.svg")}
    assert names >= {
        "data-reduction.svg", "gain-over-plain.svg", "feature-norm.svg", "entropy.svg",
        "mutual-information.svg",
    }  # fmt: skip
    accuracies = {row.arm: row for row in outcome.rows if row.setting == SETTING}
    assert set(accuracies) == set(ARMS)
    assert accuracies["adarand"].control == "plain"
    assert not any(row.setting.startswith("selection/") for row in outcome.rows)
