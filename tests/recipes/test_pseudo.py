from pathlib import Path

import pytest

from regraft.jobs.generate.pretrain import PretrainJob
from regraft.jobs.generate.target import TargetJob
from regraft.recipes import load_recipe
from regraft.recipes.pseudo.claims import read
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


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu", "paper"])
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
        assert arms["pp_pssl"].classifier.model != arms["pp_pssl"].model or scale == "gpu"
