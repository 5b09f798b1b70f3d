import dataclasses
import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from regraft.config import RuntimeConfig
from regraft.errors import DivergenceError, InputError
from regraft.jobs.base import with_sources
from regraft.jobs.finetune.analysis import conditional_entropy, describe, entropy
from regraft.jobs.finetune.tuned_job import TunedJob
from regraft.jobs.finetune.tuned_select import SelectJob
from regraft.jobs.finetune.tuned_task import TunedTask, Tuning
from regraft.recipes import SCALES, load_recipe, reproduce
from regraft.recipes.adarand.arms import ARMS, MAIN, transfer
from regraft.recipes.adarand.claims import by_pair, read
from regraft.recipes.selection import lasts
from regraft.recipes.trials import Budget
from regraft.report import Result, Run, rows
from regraft.train import read_json

module = importlib.import_module("regraft.recipes.adarand.recipe")

SMOKE = module._smoke()
SETTING = SMOKE[0].setting
CPU = RuntimeConfig(accelerator="cpu", threads=1)
QUICK = Budget(rates=(0.15,), fine=(0.05, 1e-9), seeds=(1001,))
SHORT = dataclasses.replace(SMOKE[0].task.optim, epochs=4)
PLAIN = next(job for job in SMOKE if job.arm == "plain").task
BRIEF = dataclasses.replace(PLAIN.source.optim, epochs=5)
TASK = dataclasses.replace(
    PLAIN,
    source=dataclasses.replace(PLAIN.source, optim=BRIEF),
    optim=SHORT,
    validation_images=60,
)
ARMS_RUN = ("scratch", "plain", "adarand", "supcon", "co_tuning", "delta")


def quick(arms=ARMS_RUN):
    return transfer(
        SETTING, TASK, arms, budget=QUICK, runtime=CPU, points={"plain": 2, "adarand": 2}
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Every kind of arm, selection included, run at two seeds: (arm, seed) -> (job, result)."""
    root = tmp_path_factory.mktemp("adarand")
    found = {}
    for job in with_sources([job.with_seed(seed) for job in quick() for seed in (1, 2)]):
        result = job.run(root)
        if isinstance(job, TunedJob):
            found[job.arm, job.runtime.seed] = (job, result)
    return found, root


def history(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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
        assert set(found) == set(ARMS if everything else MAIN), setting
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


# What is measured.


def test_every_arm_has_its_numbers(finished):
    found, root = finished
    for (arm, _), (job, result) in found.items():
        metrics = result["metrics"]
        # So short a run may end anywhere, also below guessing; how good methods are is tested elsewhere.
        assert 0 <= metrics["test_accuracy"] <= 100, arm
        assert all(math.isfinite(value) for value in metrics.values()), arm
        assert metrics["lr"] in {trial.lr for trial in job.choice.grid}
        assert ("weight" in metrics) is bool(ARMS[arm].weights)
        assert not (job.folder(root) / "checkpoint.safetensors").exists()
        splits = {row["split"] for row in history(job.folder(root))}
        assert "validation" not in splits


def test_the_best_trial_is_chosen_and_no_trial_sees_the_test_images(finished):
    found, root = finished
    for arm in ("plain", "adarand"):
        job, result = found[arm, 1]
        choice = read_json(job.choice.folder(root) / "choice.json")
        tried = [{k: t[k] for k in ("lr", "weight", "options")} for t in choice["trials"]]
        assert [Tuning(method=job.tuning.method, **t) for t in tried] == list(job.choice.grid)
        best = max(t["validation_accuracy"] for t in choice["trials"])
        (won,) = [t for t in choice["trials"] if choice["chosen"].items() <= t.items()]
        assert won["validation_accuracy"] == best
        assert result["metrics"]["lr"] == choice["chosen"]["lr"]
        assert result["metrics"].get("prior_lr") == choice["chosen"]["options"].get("prior_lr")
        assert read_json(job.folder(root) / "chosen.json") == choice["chosen"]
        folders = list((job.choice.folder(root) / "trials").glob("*/*"))
        assert len(folders) == len(job.choice.grid)
        for folder in folders:
            assert "test" not in {row["split"] for row in history(folder)}
            assert "test_accuracy" not in read_json(folder / "result.json")["metrics"]
    # A learning rate that does nothing is not what wins.
    assert found["plain", 1][1]["metrics"]["lr"] > 1e-9


def test_arms_of_a_seed_share_images_and_start_and_seeds_do_not(finished):
    found, root = finished
    one, two = (TASK.with_seed(seed).splits(seed) for seed in (1, 2))
    assert one.train.labels.bincount(minlength=10).tolist() == [5] * 5 + [0] * 5
    assert not one.train.images.equal(two.train.images)
    assert one.validation.images.equal(two.validation.images)
    assert len(one.validation) == 60
    a, b = (found[arm, 1][0] for arm in ("plain", "adarand"))
    assert a.task.splits(1).train.images.equal(b.task.splits(1).train.images)
    assert a.task.source.folder(root) == b.task.source.folder(root)
    assert a.task.source.folder(root) != found["plain", 2][0].task.source.folder(root)


def test_the_start_is_the_source_with_a_new_classifier(finished):
    found, root = finished
    job = found["co_tuning", 1][0]
    start = job.task.start(job.task.splits(1), root, seed=1, want_source=True)
    source = load_file(job.task.source.folder(root) / "model.safetensors")
    own = start.model.state_dict()
    for name, tensor in source.items():
        assert own[name].equal(tensor) is not name.startswith("head."), name
    assert start.source.weight.equal(source["head.weight"])
    scratch = found["scratch", 1][0].task
    other = scratch.start(scratch.splits(1), root, seed=1, want_source=False).model.state_dict()
    assert not other["features.0.weight"].equal(own["features.0.weight"])


def test_features_are_described_along_training(finished):
    found, root = finished
    job, result = found["adarand", 1]
    described = [row for row in history(job.folder(root)) if row["split"] == "features"]
    assert [row["step"] for row in described] == [0, 2, 4]
    for key in ("feature_norm", "entropy", "mutual_information"):
        assert described[-1][key] == pytest.approx(result["metrics"][key])
    # Before the first step arms are the same.
    start = history(found["plain", 1][0].folder(root))
    assert described[0] == next(row for row in start if row["split"] == "features")
    assert "entropy" not in found["delta", 1][1]["metrics"]


# Interrupted.


class KilledError(Exception):
    pass


@pytest.mark.parametrize("arm", ["adarand", "supcon", "co_tuning"])
def test_a_killed_run_goes_on_to_the_same_numbers(finished, tmp_path, arm):
    found, root = finished
    job, result = found[arm, 1]
    hasty = dataclasses.replace(
        job, runtime=dataclasses.replace(job.runtime, checkpoint_seconds=0.0)
    )
    for source in job.sources:
        target = source.folder(tmp_path)
        target.parent.mkdir(parents=True)
        target.symlink_to(source.folder(root))

    def stop(step, steps, row):
        if step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        hasty.run(tmp_path, progress=stop)
    assert not (job.folder(tmp_path) / "result.json").exists()
    assert hasty.run(tmp_path)["metrics"] == result["metrics"]
    one, two = ((job.folder(r) / "metrics.jsonl").read_bytes() for r in (root, tmp_path))
    assert one == two


def test_a_killed_selection_goes_on_with_the_trials_it_has(finished, tmp_path):
    found, root = finished
    choice = found["plain", 1][0].choice
    for source in choice.sources:
        target = source.folder(tmp_path)
        target.parent.mkdir(parents=True)
        target.symlink_to(source.folder(root))
    calls = []

    def stop(step, steps, row):
        calls.append(step)
        if len(calls) == 6:  # in the second trial of two
            raise KilledError

    with pytest.raises(KilledError):
        choice.run(tmp_path, progress=stop)
    done = list(choice.folder(tmp_path).glob("trials/*/*/result.json"))
    assert len(done) == 1
    stamp = done[0].stat().st_mtime_ns
    choice.run(tmp_path)
    assert done[0].stat().st_mtime_ns == stamp
    again, first = (choice.chosen(r) for r in (tmp_path, root))
    assert again == first


def test_options_with_levels_meet_every_rate_and_every_weight_once():
    """A Latin square: as many trials as for the other arms, no pair of values twice."""
    grid = Budget().grid(ARMS["adarand"])
    assert len(grid) == 9
    triples = [(t.lr, t.weight, t.options["prior_lr"]) for t in grid]
    for one, two in ((0, 1), (0, 2), (1, 2)):
        assert len({(t[one], t[two]) for t in triples}) == 9


def test_later_stages_vary_the_best_so_far(finished, tmp_path):
    found, root = finished
    ours = found["adarand", 1][0].choice
    link(ours.sources, root, tmp_path)
    grid = (dataclasses.replace(ours.grid[0], lr=1e-9, weight=1.0, options={}),)
    scales = ({"options": {"prior_scale": 0.0}}, {"options": {"prior_scale": 3.0}})
    choice = dataclasses.replace(
        ours, grid=grid, then=(({"lr": 1e8}, {"weight": 3.0}), scales), arm="staged"
    )
    result = choice.run(tmp_path)
    kept = read_json(choice.folder(tmp_path) / "choice.json")
    tried = [(t["lr"], t["weight"]) for t in kept["trials"]]
    assert tried == [(1e-9, 1.0), (0.1, 1.0), (1e-9, 3.0), (0.1, 1.0), (0.1, 1.0)]
    assert [t["options"] for t in kept["trials"][3:]] == [s["options"] for s in scales]
    best = max(kept["trials"], key=lambda t: (t["validation_accuracy"], -t["validation_loss"]))
    assert kept["chosen"] == {k: best[k] for k in ("lr", "weight", "options")}
    assert result["metrics"]["least_weight"] == 1.0
    assert result["metrics"]["most_weight"] == 3.0
    assert choice.config() != dataclasses.replace(choice, then=()).config()


def test_it_is_told_how_far_class_means_moved(finished):
    moved = found_of(finished, "adarand")["means_moved"]
    assert 0 < moved < 1
    assert "means_moved" not in found_of(finished, "plain")


def found_of(finished, arm):
    return finished[0][arm, 1][1]["metrics"]


def test_a_folder_without_a_test_part_is_tested_on_what_judges_no_trial(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(20):
            shade = 10 * i + (5 if name == "a" else 0)
            image.new("L", (8, 8), shade).save(tmp_path / name / f"{i}.png")
    data = dataclasses.replace(TASK.data, name=str(tmp_path), validation=0.5, only_classes=())
    task = dataclasses.replace(TASK, data=data, shots=3, validation_images=8, test_images=10)
    splits = task.splits(1)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (6, 8, 10)
    parts = [
        {float(x.float().mean()) for x in part.images}
        for part in (splits.train, splits.validation, splits.test)
    ]
    assert len(set.union(*parts)) == 24


# What goes wrong.


def _plain(lr):
    return Tuning(method="plain", lr=lr)


def test_a_trial_that_diverges_is_out(finished, tmp_path):
    found, root = finished
    plain = found["plain", 1][0]
    link(plain.choice.sources, root, tmp_path)
    choice = dataclasses.replace(plain.choice, grid=(_plain(1e30), _plain(0.1)))
    choice.run(tmp_path)
    kept = read_json(choice.folder(tmp_path) / "choice.json")
    assert kept["chosen"] == {"lr": 0.1, "weight": None, "options": {}}
    assert "lower the learning rate" in kept["trials"][0]["diverged"]
    worse = dataclasses.replace(choice, arm="other", grid=(_plain(1e30),))
    with pytest.raises(DivergenceError, match=r"every trial of other in .* diverged"):
        worse.run(tmp_path)


def test_a_reported_run_that_diverges_counts_as_guessing(finished, tmp_path):
    found, root = finished
    plain = found["plain", 1][0]
    link(plain.sources[:1], root, tmp_path)
    tuning = Tuning(method="plain", lr=1e30)
    result = dataclasses.replace(plain, choice=None, tuning=tuning).run(tmp_path)
    assert result["metrics"] == {"test_accuracy": 20.0, "diverged": 1.0, "lr": 1e30}


def test_a_network_whose_last_step_broke_it_has_diverged(finished, tmp_path, monkeypatch):
    found, root = finished
    plain = found["plain", 1][0]
    link(plain.sources[:1], root, tmp_path)
    broken = {"metrics": {"test_accuracy": 30.0, "test_loss": math.nan}, "seconds": 1.0}
    monkeypatch.setattr("regraft.jobs.finetune.engine.fit", lambda *_, **__: broken)
    tuning = Tuning(method="plain", lr=0.1)
    result = dataclasses.replace(plain, choice=None, tuning=tuning, points=0).run(tmp_path)
    assert result["metrics"] == {"test_accuracy": 20.0, "diverged": 1.0, "lr": 0.1}


def link(sources, root, onto):
    for source in sources:
        target = source.folder(onto)
        target.parent.mkdir(parents=True)
        target.symlink_to(source.folder(root))


def test_a_run_without_its_choice_or_source_says_so(finished, tmp_path):
    job = finished[0]["plain", 1][0]
    with pytest.raises(InputError, match="needs its learning rate and weight chosen first"):
        job.run(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        dataclasses.replace(job, choice=None).run(tmp_path / "elsewhere")


def test_what_cannot_judge_is_refused(tmp_path):
    data = dataclasses.replace(TASK.data, validation=0.0)
    choice = dataclasses.replace(
        quick(("scratch",))[0].choice, task=dataclasses.replace(TASK.from_scratch(), data=data)
    )
    with pytest.raises(InputError, match="has no validation images"):
        choice.run(tmp_path)
    with pytest.raises(InputError, match="grid or seeds is empty"):
        dataclasses.replace(choice, grid=()).run(tmp_path)


# The analysis.


def slow_entropy(f):
    n, d = f.shape
    return (
        d
        / (n * (n - 1))
        * sum(math.log((f[i] - f[j]).norm()) for i in range(n) for j in range(n) if i != j)
    )


@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 10**6))
def test_entropy_is_the_formula(n, d, seed):
    f = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert entropy(f) == pytest.approx(slow_entropy(f))
    assert entropy(3.0 * f + 1.0) == pytest.approx(entropy(f) + d * math.log(3.0))


def test_mutual_information_is_what_classes_take_away():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(10)
    noise = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    apart = noise + 100.0 * torch.eye(4, 6, dtype=torch.float64)[labels]
    nothing, much = describe(noise, labels), describe(apart, labels)
    assert abs(nothing["mutual_information"]) < 0.5
    assert much["mutual_information"] > 5
    assert describe(7.0 * apart, labels)["mutual_information"] == pytest.approx(
        much["mutual_information"]
    )
    within = [slow_entropy(apart[labels == k]) for k in range(4)]
    assert conditional_entropy(apart, labels) == pytest.approx(sum(within) / 4)
    assert much["feature_norm"] == pytest.approx(apart.norm(dim=1).mean().item())


def test_equal_features_and_lonely_classes_have_a_finite_entropy():
    f = torch.ones(3, 2)
    assert math.isfinite(entropy(f))
    assert conditional_entropy(f, torch.tensor([0, 0, 1])) == pytest.approx(entropy(f[:2]))


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


def test_the_recipe_leaves_its_tables_and_figures(finished, monkeypatch, tmp_path):
    _, root = finished
    larger = dataclasses.replace(TASK, shots=20)
    arms = ("plain", "adarand")
    more = transfer(SETTING.replace("shots=5", "shots=20"), larger, arms, budget=QUICK, runtime=CPU)
    monkeypatch.setattr(module, "_smoke", lambda: [*quick(), *more])
    recipe = load_recipe("adarand", "smoke", 2)
    outcome = reproduce(recipe, root, workers=1, results=tmp_path)
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
    assert set(accuracies) == set(ARMS_RUN)
    assert accuracies["adarand"].control == "plain"
    assert not any(row.setting.startswith("selection/") for row in outcome.rows)


@pytest.mark.slow
def test_the_smoke_scale_runs(tmp_path):
    recipe = load_recipe("adarand", "smoke", 1)
    outcome = reproduce(recipe, tmp_path / "runs", workers=1, results=tmp_path / "results")
    assert {row.arm for row in outcome.rows if row.setting == SETTING} == set(ARMS)
    assert all(isinstance(j.choice, SelectJob) for j in recipe.jobs if isinstance(j, TunedJob))


def test_a_share_of_the_images_is_stratified():
    task = dataclasses.replace(TASK, shots=None, share=0.1)
    whole = TunedTask.splits(dataclasses.replace(TASK, shots=None), 1)
    few = task.splits(1)
    assert len(few.train) == round(0.1 * len(whole.train))
    assert (few.train.labels.bincount() > 0).sum() == 5
