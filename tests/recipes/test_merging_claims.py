import dataclasses
from pathlib import Path

import pytest

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.recipes.merging.claims import read, slopes
from regraft.recipes.merging.recipe import Pair
from regraft.report import Result, Run, rows

DIGITS = DataConfig(name="digits", normalize="none")
PAIR = Pair(
    setting="digits+rotated=90/mlp",
    seeds=3,
    arms=(),
    a=DIGITS,
    b=dataclasses.replace(DIGITS, rotate=90.0),
    model=ModelConfig(name="mlp"),
    train=OptimConfig(),
    runtime=RuntimeConfig(),
)


def run(setting, arm, seed, **metrics):
    return Run(
        folder=Path(),
        setting=setting,
        arm=arm,
        control=None if arm in ("weight_matching", "dense") else "weight_matching",
        seed=seed,
        result=Result(metrics=metrics, seconds=1.0),
    )


def pair_runs(gains):
    found = []
    for seed in (1, 2, 3):
        noise = 0.2 * (-1) ** seed
        found.append(run(PAIR.setting, "weight_matching", seed, test_accuracy=60.0 + seed))
        for arm, gain in gains.items():
            value = 60.0 + seed + gain + noise
            found.append(run(PAIR.setting, arm, seed, test_accuracy=value))
    return found


@pytest.mark.parametrize(
    ("full", "condensed", "held"), [(30, 26, (True, True)), (24, 20, (False, False))]
)
def test_claims_follow_the_numbers(full, condensed, held):
    gains = {"average": -5, "ste_full": full, "ste_condensed": condensed, "ste_random": 22}
    found = pair_runs({**gains, "scratch_condensed": 10, "ensemble": 25})
    claims = {c.paper: c for c in read(found, rows(found)).claims}
    for words, expected in zip(("gains 28", "gain is 25"), held, strict=True):
        (claim,) = [c for paper, c in claims.items() if words in paper]
        assert claim.held is expected, claim
        assert claim.evidence == [PAIR.setting]
    (claim,) = [c for paper, c in claims.items() if "better for matching than a random" in paper]
    assert claim.held is (condensed > 22)
    (claim,) = [c for paper, c in claims.items() if "ensemble" in paper]
    assert claim.held is (full > 25)


def test_slopes_are_those_of_a_line():
    points = {0.0: {1: 90.0, 2: 80.0}, 45.0: {1: 80.0, 2: 80.0}, 90.0: {1: 70.0, 2: 80.0, 3: 1.0}}
    assert slopes(points) == pytest.approx({1: -20.0, 2: 0.0})


@pytest.mark.parametrize("fall", [20.0, -1.0])
def test_the_angle_is_read_over_all_its_settings(fall):
    found = []
    upright = dataclasses.replace(PAIR, setting="digits/mlp", b=DIGITS, angles=(0.0, 45.0, 90.0))
    for pair in upright.turned():
        angle = pair.b.rotate
        for seed in (1, 2, 3):
            lost = fall * angle / 90 + 0.1 * seed
            found.append(run(pair.setting, "weight_matching", seed, test_accuracy=90.0 - lost))
            found.append(run(pair.setting, "ste_full", seed, test_accuracy=90.0 - 0.1 * seed))
            found.append(run(pair.setting, "average", seed, test_accuracy=70.0 + seed))
    falls, holds = read(found, rows(found)).claims
    assert (falls.held, holds.held) == (fall > 0, fall > 0)
    assert len(falls.evidence) == 3
    assert "45: " in falls.note


@pytest.mark.parametrize("lower", [True, False])
def test_barriers_of_aligned_and_unaligned_networks_are_compared(lower):
    found = []
    for seed in (1, 2, 3):
        for end in ("", "_reset", "_repair"):
            aligned = 10.0 if lower else 41.0
            for arm, barrier in (
                ("average", 40.0),
                ("weight_matching", aligned),
                ("activation_matching", 20.0),
            ):
                value = barrier + 0.1 * seed
                metrics = {"accuracy_barrier": value, "loss_barrier": value / 10}
                found.append(run("x/same-data", arm + end, seed, test_accuracy=50.0, **metrics))
    claims = read(found, rows(found)).claims
    assert [c.held for c in claims] == [lower, True] * 3
    assert all("REPAIR" in c.paper for c in claims[4:])


def test_repair_is_read_against_the_same_merge_without_it():
    found = []
    values = {"average": 38, "average_repair": 66, "weight_matching": 50, "ste_random": 80}
    for arm, value in values.items():
        for seed in (1, 2, 3):
            metrics = {"test_accuracy": value + 0.1 * seed * (arm != "average")}
            found.append(
                Run(
                    folder=Path(),
                    setting="mnist+fashion_mnist/mlp",
                    arm=arm,
                    control=None,
                    seed=seed,
                    result=Result(metrics=metrics, seconds=1.0),
                )
            )
    claims = {c.paper: c for c in read(found, rows(found)).claims}
    (lifts,) = [c for p, c in claims.items() if "lifts the plain average" in p]
    assert lifts.held
    (more,) = [c for p, c in claims.items() if "does more than weight matching" in p]
    assert more.held
    (matching,) = [c for p, c in claims.items() if "better than the plain average" in p]
    assert {f.what: f.figure for f in matching.published} == {
        "weight_matching": 65.0,
        "average": 57.0,
    }
