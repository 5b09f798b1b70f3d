import dataclasses
import functools
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig, TicketConfig
from regraft.errors import InputError, RegraftError
from regraft.jobs.train import TrainJob
from regraft.recipes import RECIPES, SCALES, load_recipe, reproduce
from regraft.recipes.iterand.claims import bytes_of, equal_accuracy, equal_cost, width_of
from regraft.recipes.recipe import Scale, _commits
from regraft.report import Result, Run

iterand = importlib.import_module("regraft.recipes.iterand.recipe")

# What is asked for.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("iterrand", "cpu"), "recipe 'iterrand' is unknown: did you mean 'iterand'"),
        (("nothing", "cpu"), "recipe 'nothing' is unknown: known are adarand, frozen"),
        (("iterand", "huge"), "scale 'huge' is unknown: expected one of smoke, cpu, gpu, paper"),
        (("iterand", "cpu", 0), "seeds=0: expected at least 1"),
        (("iterand", "cpu", -3), "seeds=-3: expected at least 1"),
    ],
)
def test_unknown_recipes_scales_and_seeds_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        load_recipe(*arguments)


# The jobs.

every_scale = pytest.mark.parametrize(
    ("name", "scale"), [(name, scale) for name in RECIPES for scale in SCALES]
)


@functools.cache
def jobs_of(name, scale, seeds=None):
    """The jobs of a recipe, which nobody can change, once for all tests: some have ten thousand."""
    return load_recipe(name, scale, seeds).jobs


@every_scale
def test_every_job_is_one_of_its_kind_with_a_folder_of_its_own(name, scale):
    jobs = jobs_of(name, scale)
    assert len({(job.setting, job.arm, job.runtime.seed) for job in jobs}) == len(jobs)
    assert len({job.folder(Path("runs")) for job in jobs}) == len(jobs)
    # Two seeds of each tell whether a seed is part of what a job is known by; the others add none.
    few = jobs_of(name, scale, 2)
    configs = {(job.setting, json.dumps(job.config(), sort_keys=True)) for job in few}
    assert len(configs) == len(few)


@every_scale
def test_every_control_is_run_in_the_same_setting_and_every_source_somewhere(name, scale):
    jobs = jobs_of(name, scale)
    there = {(job.setting, job.arm, job.runtime.seed): job for job in jobs}
    for job in jobs:
        if job.control is not None:
            assert (job.setting, job.control, job.runtime.seed) in there
        for source in job.sources:
            assert there[source.setting, source.arm, source.runtime.seed] == source
            assert job.folder(Path()) != source.folder(Path())
    assert any(job.control is not None for job in jobs)


FRESH = {("transfer", "cpu"), ("merging", "cpu")}
"""Settings of these were chosen while looking at the first seeds."""


@every_scale
def test_every_setting_has_the_same_first_seeds_in_every_arm(name, scale):
    for seeds in (None, 2):
        jobs = jobs_of(name, scale, seeds)
        found = {}
        for job in jobs:
            arms = found.setdefault(job.setting, {})
            arms.setdefault(job.arm, []).append(job.runtime.seed)
        sources = {source.folder(Path()) for job in jobs for source in job.sources}
        reported = {job.setting for job in jobs if job.folder(Path()) not in sources}
        for setting, arms in found.items():
            most = max(arms.values(), key=len)
            if (name, scale) in (("mgr", "cpu"), ("pseudo", "cpu")):
                # Arms beside the headline have the first seeds alone: pairs are of equal seeds.
                assert all(
                    s == most[: len(s)] and len(s) >= min(3, len(most)) for s in arms.values()
                )
            else:
                assert all(s == most for s in arms.values())
            # What is only a source, such as a selection, may have other seeds.
            compared = len(arms) > 1 and setting in reported
            assert seeds is None or not compared or most == [most[0], most[0] + 1]
            assert most[0] == 1 or (name, scale) in FRESH or not compared


@pytest.mark.parametrize("scale", SCALES)
def test_arms_of_one_setting_differ_in_nothing_but_the_method(scale):
    settings = {}
    for job in jobs_of("iterand", scale, 1):
        settings.setdefault(job.setting, {})[job.arm] = job
    for arms in settings.values():
        one, other = arms["edge_popup"], arms["iterand"]
        ticket = dataclasses.replace(one.ticket, method="iterand")
        changed = dataclasses.replace(one, arm="iterand", control="edge_popup", ticket=ticket)
        assert changed == other


def test_the_paper_scale_holds_the_published_settings():
    jobs = jobs_of("iterand", "paper")
    # Network: sparsity, lr of scores, lr of dense training, weight decay, K_per, r.
    published = {
        "conv6": (0.5, 0.3, 0.01, 1e-4, 300, 0.1),
        "resnet18": (0.6, 0.1, 0.1, 5e-4, 300, 0.1),
        "resnet34": (0.6, 0.1, 0.1, 5e-4, 300, 0.1),
        "torchvision/resnet50": (0.7, 0.1, 0.1, 1e-4, 1000, 0.1),
    }
    for name, (sparsity, lr, dense_lr, decay, every, rate) in published.items():
        found = [job for job in jobs if job.model.name == name]
        assert {job.arm for job in found} == {"dense", "edge_popup", "iterand"}
        for job in found:
            assert job.optim.lr == (dense_lr if job.arm == "dense" else lr)
            assert (job.optim.weight_decay, job.ticket.sparsity) == (decay, sparsity)
            assert (job.ticket.every, job.ticket.rate) == (every, rate)
            assert (job.optim.optimizer, job.optim.momentum) == ("sgd", 0.9)
            assert (job.optim.batch_size, job.optim.schedule) == (128, "epoch-cosine")
            assert (job.ticket.scope, job.ticket.score) == ("layer", "signed")
            assert not job.ticket.rescale
        if name.startswith("torchvision/"):
            times = {
                (j.optim.epochs, j.optim.warmup_epochs, j.optim.cooldown_epochs) for j in found
            }
            assert times == {(105, 5, 5)}
            assert {(j.optim.cooldown_lr, j.data.validation) for j in found} == {(1e-5, 0.01)}
            continue
        assert {(j.optim.epochs, j.optim.warmup_epochs) for j in found} == {(100, 0)}
        assert {(j.data.name, j.data.validation, j.data.split_seed) for j in found} == {
            ("cifar10", 0.1, 777)
        }
        assert {job.model.width for job in found} == {0.25, 0.5, 1.0, 2.0}
        assert {job.ticket.weight_init for job in found} == {
            "signed_kaiming_constant",
            "kaiming_uniform",
        }
        assert {job.runtime.seed for job in found} == {1, 2, 3}


def test_what_changes_no_number_is_no_part_of_a_runs_identity():
    job = TrainJob(setting="s", arm="iterand", source=TrainJob(setting="s", arm="edge_popup"))
    runtime = dataclasses.replace(job.runtime, checkpoint_seconds=9.0)
    assert dataclasses.replace(job, runtime=runtime).config() == job.config()
    assert job.with_data_root("elsewhere").config() == job.config()
    assert job.with_data_root("elsewhere").source.data.root == "elsewhere"
    assert job.with_seed(5).config() != job.config()
    assert job.with_seed(5).source.runtime.seed == 5


# Equal accuracy, and equal cost.

WIDTHS = (0.25, 0.5, 1.0, 2.0)


def equal_accuracy_widths(runs, family):
    return equal_accuracy(runs, family, width_of)


def run(arm, width, seed, accuracy, family="f/net", size=None):
    return Run(
        folder=Path("runs"),
        setting=f"{family}/width={width:g}",
        arm=arm,
        control=None,
        seed=seed,
        result=None
        if accuracy is None
        else Result(metrics={"test_accuracy": accuracy}, stored_bytes=size),
    )


def curves(factor, seed=1, slope=7.0, family="f/net"):
    """Return runs where IteRand at a width is as good as edge-popup at `factor` times the width."""
    runs = []
    for width in WIDTHS:
        runs.append(run("edge_popup", width, seed, 80 + slope * math.log(width), family))
        runs.append(run("iterand", width, seed, 80 + slope * math.log(factor * width), family))
    return runs


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.3, 2.0, 4.0])
def test_curves_that_are_shifted_give_back_the_shift(factor):
    assert equal_accuracy_widths(curves(factor), "f/net") == pytest.approx([1 / factor])


def test_every_seed_gives_its_own_ratio():
    runs = [*curves(2.0, seed=1), *curves(1.25, seed=3), *curves(4.0, seed=2, family="other/net")]
    assert equal_accuracy_widths(runs, "f/net") == pytest.approx([0.5, 0.8])
    assert equal_accuracy_widths(runs, "other/net") == pytest.approx([0.25])


def test_a_curve_with_a_bend_is_averaged_over_the_accuracies_both_reach():
    # Edge-popup reaches 70, 80, 85 at log2 width 0, 1, 2; IteRand reaches 80, 85, 85.
    points = {"edge_popup": (70.0, 80.0, 85.0), "iterand": (80.0, 85.0, 84.0)}
    runs = [run(arm, 2.0**i, 1, a) for arm, found in points.items() for i, a in enumerate(found)]
    # From 80 to 85 the first needs 1 + t, the second t of the way: a factor of two throughout,
    # but for the accuracy 85 itself, which a flat end may reach anywhere.
    assert equal_accuracy_widths(runs, "f/net")[0] == pytest.approx(0.5, rel=0.01)


def test_accuracies_that_only_one_arm_reaches_say_nothing():
    runs = [run("edge_popup", w, 1, 50 + i) for i, w in enumerate(WIDTHS)]
    runs += [run("iterand", w, 1, 90 + i) for i, w in enumerate(WIDTHS)]
    assert equal_accuracy_widths(runs, "f/net") == []


def test_one_width_or_one_arm_or_no_result_gives_no_ratio():
    runs = curves(2.0)
    assert equal_accuracy_widths(runs[:2], "f/net") == []
    assert equal_accuracy_widths([r for r in runs if r.arm == "iterand"], "f/net") == []
    unfinished = [dataclasses.replace(r, result=None) for r in runs]
    assert equal_accuracy_widths(unfinished, "f/net") == []
    assert equal_accuracy_widths([], "f/net") == []


def test_noise_that_does_not_favour_an_arm_gives_a_ratio_about_one():
    noise = np.random.default_rng(0)
    runs = [
        run(arm, width, seed, 80 + 7 * math.log(width) + noise.normal(0, 0.5))
        for arm in ("edge_popup", "iterand")
        for width in WIDTHS
        for seed in range(1, 41)
    ]
    assert np.mean(np.log(equal_accuracy_widths(runs, "f/net"))) == pytest.approx(0, abs=0.05)


def test_equal_bytes_are_read_between_the_sizes_that_both_have():
    # Edge-popup: 70, 80, 90 at 1, 2 and 4 kB; IteRand is 4 points better at twice the bytes of each.
    runs = [
        run("edge_popup", w, 1, 70 + 10 * i, size=1000 * 2**i) for i, w in enumerate(WIDTHS[:3])
    ]
    runs += [run("iterand", w, 1, 74 + 10 * i, size=2000 * 2**i) for i, w in enumerate(WIDTHS[:3])]
    # So at equal bytes it is 6 points worse, and takes 2^0.6 times the bytes for equal accuracy.
    assert equal_cost(runs, "f/net", bytes_of) == pytest.approx([-6.0])
    assert equal_accuracy(runs, "f/net", bytes_of) == pytest.approx([2**0.6])
    apart = [run("iterand", w, 1, 90, size=10**6 * (i + 1)) for i, w in enumerate(WIDTHS)]
    assert equal_cost([*runs[:3], *apart], "f/net", bytes_of) == []


# From the command to the report.


def tiny(*, widths=(0.25, 0.5), controls=("shuffled_mask",)):
    jobs = []
    for width in widths:
        jobs += iterand._arms(
            f"digits/conv_small/constant/width={width:g}",
            data=DataConfig(name="digits", train_size=100),
            model=ModelConfig(name="conv_small", width=width),
            ticket=TicketConfig(every=2),
            search=OptimConfig(lr=0.1, epochs=1, batch_size=32),
            dense=OptimConfig(lr=0.05, epochs=1, batch_size=32),
            runtime=RuntimeConfig(accelerator="cpu", threads=1),
            controls=controls if width == widths[0] else (),
        )
    return jobs


def tiniest():
    return tiny(widths=(0.25,), controls=())


def stamps(out):
    return {p: p.stat().st_mtime_ns for p in out.rglob("seed*/*")}


def test_a_recipe_leaves_its_report_and_runs_nothing_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(iterand, "_groups", lambda _: [Scale(tiny, 1)])
    recipe = load_recipe("iterand", "smoke", 2)
    assert len(recipe.jobs) == 14
    out, results = tmp_path / "runs", tmp_path / "results"
    first = reproduce(recipe, out, workers=1, results=results)
    page = (out / "report.html").read_text()
    assert first.page == out / "report.html"
    assert recipe.title in page
    assert "<svg" in page
    assert all(path.exists() for path in first.results)
    names = {path.name for path in results.rglob("*") if path.is_file()}
    assert {"iterand_smoke.md", "iterand_smoke.json"} <= names
    assert any(name.endswith(".svg") for name in names)
    assert {(row.setting, row.arm, row.n) for row in first.rows} == {
        (job.setting, job.arm, 2) for job in recipe.jobs
    }
    papers = [claim.paper for claim in first.findings.claims]
    assert sum("equal width" in paper for paper in papers) == 2
    for job in recipe.jobs:
        kept = "model.safetensors" if job.arm == "dense" else "model.ticket"
        expected = job.arm != "shuffled_mask"  # its masks are those of its source
        assert (job.folder(out) / kept).exists() == expected

    before = stamps(out)
    monkeypatch.setattr("regraft.jobs.data.load", lambda _: pytest.fail("data were loaded"))
    monkeypatch.setattr("regraft.jobs.data._loaded", {})
    again = reproduce(recipe, out, workers=1, results=results)
    assert stamps(out) == before
    assert again.rows == first.rows
    assert again.findings.claims == first.findings.claims
    assert again.seconds >= first.seconds


@pytest.mark.slow
def test_two_workers_find_the_same_numbers_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(iterand, "_groups", lambda _: [Scale(tiniest, 1)])
    recipe = load_recipe("iterand", "smoke", 1)
    outcomes = [reproduce(recipe, tmp_path / str(w), workers=w) for w in (1, 2)]
    for job in recipe.jobs:
        one, two = (
            json.loads((job.folder(tmp_path / w) / "result.json").read_text())["metrics"]
            for w in ("1", "2")
        )
        assert one == two
    assert [row.mean for row in outcomes[0].rows] == [row.mean for row in outcomes[1].rows]


def test_what_is_missing_is_run_and_the_rest_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(iterand, "_groups", lambda _: [Scale(tiniest, 1)])
    recipe = load_recipe("iterand", "smoke", 1)
    recipe.jobs[1].run(tmp_path)
    before = stamps(tmp_path)
    reproduce(recipe, tmp_path, workers=1)
    after = stamps(tmp_path)
    assert {path: after[path] for path in before} == before
    assert all((job.folder(tmp_path) / "result.json").exists() for job in recipe.jobs)


def test_a_job_that_cannot_run_stops_the_recipe_with_its_reason(tmp_path, monkeypatch):
    broken = dataclasses.replace(tiny(widths=(0.25,))[0], model=ModelConfig(name="conv_smal"))
    monkeypatch.setattr(iterand, "_groups", lambda _: [Scale(lambda: [broken], 1)])
    with pytest.raises(RegraftError, match="'conv_smal' is unknown: did you mean 'conv_small'"):
        reproduce(load_recipe("iterand", "smoke", 1), tmp_path, workers=1)
    assert not (tmp_path / "report.html").exists()


def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(iterand, "_groups", lambda _: [Scale(tiny, 1)])
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        reproduce(load_recipe("iterand", "smoke", 1), tmp_path / "file" / "runs", workers=1)


def test_a_page_names_every_commit_that_its_runs_were_made_at() -> None:
    runs = [
        Run(
            folder=Path(),
            setting="a",
            arm="b",
            control=None,
            seed=seed,
            environment={"commit": commit},
        )
        for seed, commit in enumerate(("b2", "a1", "b2", None))
    ]
    assert _commits(runs) == "b2, a1, unknown"
