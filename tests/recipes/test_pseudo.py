from dataclasses import replace
from pathlib import Path

import pytest

from regraft.errors import InputError
from regraft.jobs.generate.foreign import ForeignClassifier, ForeignGenerator
from regraft.jobs.generate.pretrain import PretrainJob
from regraft.jobs.generate.target import TargetJob
from regraft.recipes import load_recipe
from regraft.recipes.notes import read_data
from regraft.recipes.pseudo.claims import read
from regraft.recipes.pseudo.recipe import settings
from regraft.report import Result, Run

ARMS = {"scratch": 60, "logit_matching": 62, "soft_targets": 61, "pp": 66, "pp_pssl": 68}


def runs_of(setting, **levels):
    return [
        Run(
            folder=Path(arm),
            setting=setting,
            arm=arm,
            control=None if arm == "scratch" else "scratch",
            seed=seed,
            result=Result(metrics={"test_accuracy": level + seed + 0.1 * (seed % 2)}),
        )
        for arm, level in levels.items()
        for seed in (1, 2, 3)
    ]


def test_what_the_oracle_lets_through_is_claimed_and_the_rest_is_told():
    passed = runs_of("a/net/n=1", oracle=70, **ARMS)
    failed = runs_of("b/net/n=1", oracle=60, **ARMS)
    findings = read([*passed, *failed], [])
    assert findings.claims
    assert all("b/net/n=1" not in c.evidence for c in findings.claims)
    held = {c.paper: c.held for c in findings.claims}
    assert held["PP + P-SSL beats training from scratch (a/net/n=1)"]
    assert held["P-SSL adds to PP (a/net/n=1)"]
    assert "b/net/n=1: the oracle" in findings.text
    assert "it cannot show the claim" in findings.text
    assert "It gains +8.00 [8.00, 8.00] over logit matching and +9.00" in findings.text


def test_a_task_is_claimed_over_its_architectures():
    one = runs_of("a/net/n=1", oracle=70, **ARMS)
    other = runs_of("a/resnet/n=1", oracle=70, **ARMS)
    claims = read([*one, *other], []).claims
    assert not any(" on a, at each of the architectures" in c.paper for c in claims)  # said already
    weaker = runs_of("b/net/n=1", oracle=70, **{**ARMS, "pp_pssl": 61})
    claims = {c.paper: c for c in read([*one, *other, *weaker], []).claims}
    every = claims[
        "PP + P-SSL beats logit matching, at each of the settings that the oracle lets through"
    ]
    of_task = claims["PP + P-SSL beats logit matching on a, at each of the architectures"]
    assert (every.held, of_task.held) == (False, True)
    assert of_task.evidence == ["a/net/n=1", "a/resnet/n=1"]


def test_the_scale_cpu_has_three_architectures_of_one_task_at_seeds_that_chose_nothing():
    jobs = load_recipe("pseudo", "cpu").jobs
    assert {j.runtime.seed for j in jobs} == set(range(1, 9))  # weights were chosen at 11 to 13
    more = {(j.setting, j.arm) for j in jobs if j.runtime.seed > 5 and j.control is not None}
    pairs = {f"coarse_to_fine_mnist/{net}/n=30" for net in ("conv_small", "resnet8", "vit")}
    assert {setting for setting, _ in more} == pairs - {"coarse_to_fine_mnist/vit/n=30"}
    assert "pp_pssl" in {arm for _, arm in more}
    assert "pp_pssl_hard" not in {arm for _, arm in more}
    settings = {j.setting for j in jobs if j.arm == "pp_pssl"}
    assert settings == {*pairs, "letters_to_digits/conv_small/n=20", "letters_to_digits/mlp/n=20"}


def test_chosen_weights_are_those_of_a_task_and_network_of_the_recipe():
    jobs = [j for scale in ("cpu", "foreign") for j in load_recipe("pseudo", scale, 1).jobs]
    chosen = read_data("regraft.recipes.pseudo", "chosen.toml")
    headline = read_data("regraft.recipes.pseudo", "scales.toml")["arms"]["headline"]
    by_name = {(j.setting, j.arm): j for j in jobs}
    for task, nets in chosen.items():
        for net, weights in nets.items():
            (size,) = {
                j.setting.rpartition("/")[2]
                for j in jobs
                if j.setting.startswith(task) and j.arm == "pp"
            }
            arms = {arm: by_name[f"{task}/{net}/{size}", arm] for arm in headline}
            assert arms["logit_matching"].distil_weight == weights["logits"]
            assert arms["soft_targets"].distil_weight == weights["soft"]
            assert arms["pp_pssl"].ssl.ssl_weight == weights["pseudo"]
            assert arms["ssl_target"].ssl.ssl_weight == weights["target"]
    assert {(task, net) for task, nets in chosen.items() for net in nets} == {
        tuple(j.setting.split("/")[:2]) for j in jobs if j.arm == "pp_pssl"
    }


def test_the_scale_foreign_trains_neither_generator_nor_source_classifier():
    jobs = {j.arm: j for j in load_recipe("pseudo", "foreign", 1).jobs}
    ours = jobs["pp_pssl"]
    assert ours.generator == jobs["generator"]
    assert ours.classifier == jobs["source_classifier"]
    assert isinstance(jobs["generator"], ForeignGenerator)
    assert isinstance(jobs["source_classifier"], ForeignClassifier)
    measured = {name for name, _ in load_recipe("pseudo", "foreign", 1).metrics}
    assert measured - {name for name, _ in load_recipe("pseudo", "smoke", 1).metrics} == {
        "classification_accuracy_score",
        "spread",
    }
    # No real image of the source reaches any arm but the oracle.
    real = {name for name, j in jobs.items() if getattr(j, "real", None) is not None}
    assert real == {"oracle_body"}


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu", "paper", "foreign"])
def test_arms_of_a_setting_take_equal_steps_from_equal_sources(scale):
    jobs = load_recipe("pseudo", scale, 1).jobs
    targets = [j for j in jobs if isinstance(j, TargetJob) and "/n=" in j.setting]
    for setting in {j.setting for j in targets if "teacher" not in j.setting}:
        arms = {j.arm: j for j in targets if j.setting == setting}
        assert {
            "oracle",
            "scratch",
            "logit_matching",
            "soft_targets",
            "pp",
            "pp_pssl",
        } <= arms.keys()
        equal = [(j.steps, j.target, j.test, j.model, j.optim.batch_size) for j in arms.values()]
        assert all(one == equal[0] for one in equal)
        real, made = arms["oracle"].start, arms["pp"].start
        assert isinstance(real, PretrainJob)
        assert isinstance(made, PretrainJob)
        assert (real.pretrain, real.model, real.real) == (
            made.pretrain,
            made.model,
            made.generator.images,
        )
        assert arms["logit_matching"].teacher.model != arms["pp_pssl"].model or scale == "gpu"


def test_what_a_row_of_a_scale_names_and_is_not_there_is_refused():
    (row,) = settings("smoke")
    with pytest.raises(
        InputError, match=r"scales.toml has no net 'convsmall': expected one of mlp"
    ):
        list(replace(row, nets=("convsmall",)).parts())
    with pytest.raises(InputError, match="no arm 'ppp': expected pp"):
        replace(row, arms=("headline", "ppp")).jobs()
