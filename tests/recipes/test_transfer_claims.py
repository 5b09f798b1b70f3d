import dataclasses
import math
from pathlib import Path

import pytest

from regraft.jobs.transfer.job import pair_of
from regraft.recipes.curves import seconds_to, training_curve
from regraft.recipes.transfer.claims import FAR, read
from regraft.report import Result, Run, rows


def run(setting, arm, seed, *, validated=(), seconds=None, history=(), **metrics):
    found = tuple(
        {"step": 10 * (e + 1), "epoch": e, "split": "validation", "accuracy": a}
        for e, a in enumerate(validated)
    )
    return Run(
        folder=Path("runs"),
        setting=setting,
        arm=arm,
        control=None if arm in ("naive", "trained") else "naive",
        seed=seed,
        history=(*found, *history),
        result=Result(metrics=metrics, seconds=seconds),
    )


def carried(setting, arm, seed, value, *, before=1.0, training=4.0, validated=(80.0, 90.0)):
    metrics = dict.fromkeys(
        ("untrained_best_accuracy", "untrained_final_accuracy", "along_accuracy"), value
    )
    return run(
        setting,
        arm,
        seed,
        validated=validated,
        untrained_validation_accuracy=value,
        transfer_seconds=before,
        training_seconds=training,
        **metrics,
        **{f"{short}_barrier": (100 - value) / 100 for short in ("target", "source", "between")},
    )


def test_a_curve_holds_the_transfer_and_what_was_before_training():
    one = carried("s", "fgmt", 1, 70.0, before=3.0, training=8.0, validated=(80.0, 90.0))
    assert training_curve(one) == [(0.0, 3.0, 70.0), (1.0, 7.0, 80.0), (2.0, 11.0, 90.0)]
    plain = run(
        "networks/s", "trained", 102, validated=(60.0, 75.0), seconds=6.0, test_accuracy=1.0
    )
    assert training_curve(plain) == [(1.0, 3.0, 60.0), (2.0, 6.0, 75.0)]
    assert training_curve(dataclasses.replace(one, result=None)) == []


def test_the_first_point_at_an_accuracy_counts():
    curve = [(0.0, 1.0, 50.0), (1.0, 2.0, 80.0), (2.0, 3.0, 70.0), (3.0, 4.0, 80.0)]
    assert seconds_to(curve, 50.0) == 1.0
    assert seconds_to(curve, 60.0) == seconds_to(curve, 80.0) == 2.0
    assert seconds_to(curve, 80.1) is None
    assert seconds_to([], 0.0) is None


@pytest.mark.parametrize("gain", [FAR + 3, FAR - 2, -1.0])
def test_far_above_naive_is_far_and_above(gain):
    found = []
    for seed in (1, 2, 3):
        found.append(carried("s", "naive", seed, 70.0 + seed))
        found.append(carried("s", "fgmt", seed, 70.0 + seed + gain + 0.1 * (-1) ** seed))
    claims = [
        c for c in read(found, rows(found, "along_accuracy")).claims if "far above" in c.paper
    ]
    assert len(claims) == 3
    assert {c.held for c in claims} == {gain > FAR}
    (best,) = [c for c in claims if "chosen on validation" in c.paper]
    assert f"fgmt {72 + gain - 0.1 / 3:.2f} [" in best.note


@pytest.mark.parametrize(
    ("before", "reaches", "held"), [(1.0, 91.0, True), (9.0, 91.0, False), (1.0, 85.0, False)]
)
def test_fewer_seconds_count_the_transfer_and_need_every_seed(before, reaches, held):
    found = []
    for seed in (1, 2, 3):
        # One epoch takes 2 s, the goal of 90% takes the control 4 s.
        end = reaches if seed == 2 else 91.0
        scratch = run(
            "s",
            "scratch",
            seed,
            validated=(70.0, 90.0),
            untrained_validation_accuracy=10.0,
            transfer_seconds=0.0,
            training_seconds=4.0 + 0.01 * seed,
            test_accuracy=90.0,
        )
        mine = carried("s", "fgmt", seed, 80.0, before=before, validated=(end, end))
        found += [scratch, mine, carried("s", "naive", seed, 60.0)]
        _, target = pair_of(seed)
        full = (70.0, 80.0, 95.0)
        found.append(
            run("networks/s", "trained", target, validated=full, seconds=6.0, test_accuracy=95.0)
        )
    reading = read(found, rows(found, "along_accuracy"))
    claims = {c.paper: c for c in reading.claims if "fewer seconds" in c.paper}
    assert [c.held for c in claims.values()] == [held, False]
    first, second = (c.note for c in claims.values())
    assert ("3 of 3" in first) is (reaches > 90)
    assert "0 of 3" in second
    decided = "one that never does decides that this did not hold, and is in no mean"
    assert decided in second
    assert (decided in first) is (reaches < 90)
    assert ("instead of 4.0 s" in first) is True
    assert "As many epochs from scratch took 4.02 s" in reading.text
    assert f"FGMT took {before:.2f} s before training" in reading.text
    (epoch,) = [c for c in reading.claims if "After one epoch" in c.paper and "scratch" in c.paper]
    assert epoch.held is True
    assert set(reading.figures) == {"epochs", "seconds"}


@pytest.mark.parametrize("better", [True, False])
def test_barriers_and_initialisations_are_held_against_fgmt(better):
    found = []
    for seed in (1, 2, 3):
        noise = 0.1 * (-1) ** seed
        own = 85.0 + noise if better else 75.0 + noise
        found += [carried("s", "naive", seed, 80.0), carried("s", "fgmt", seed, own)]
        found += [carried("s", "gmt", seed, 86.0), carried("s", "initial_weights", seed, 80.0)]
        found.append(run("s", "scratch", seed, test_accuracy=1.0, training_seconds=1.0))
    claims = read(found, rows(found, "along_accuracy")).claims
    for words in ("a lower barrier between", "initialisations alone"):
        assert [c.held for c in claims if words in c.paper] == [better]
    assert [c.held for c in claims if "without barrier" in c.paper] == [False, False]
    (close,) = [c for c in claims if "as good as GMT" in c.paper]
    assert close.held is (
        None if better else False
    )  # the interval holds one point less, or is below


@pytest.mark.parametrize(("barrier", "held"), [(0.0, True), (0.04, True), (0.2, False)])
def test_no_barrier_is_a_small_one_in_every_seed(barrier, held):
    found = []
    for seed in (1, 2, 3):
        for arm in ("naive", "fgmt", "scratch"):
            high = {f"{short}_barrier": barrier + 0.001 * seed for short in ("target", "source")}
            found.append(run("s", arm, seed, test_accuracy=1.0, **high))
    claims = [c for c in read(found, rows(found)).claims if "without barrier" in c.paper]
    assert [c.held for c in claims] == [held, held]


@pytest.mark.parametrize(("here", "held"), [(0.5, True), (10.0, None), (20.0, False)])
def test_a_regime_hides_what_is_smaller_there(here, held):
    found = []
    for seed in (1, 2, 3):
        for setting, gain in (("s", 10.0), ("s/lr=0.1", here), ("s/unnormalised", here)):
            noise = 0.2 * (-1) ** seed if setting != "s" else 0.0
            found.append(carried(setting, "naive", seed, 60.0 + seed))
            found.append(carried(setting, "fgmt", seed, 60.0 + seed + gain + noise))
    claims = [c for c in read(found, rows(found, "along_accuracy")).claims if "hide" in c.paper]
    assert [c.held for c in claims] == [held, held]
    assert claims[0].evidence == ["s/lr=0.1", "s"]
    assert not math.isnan(float(claims[0].note.split(": ")[1].split(" ")[0]))
