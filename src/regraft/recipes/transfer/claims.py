"""What the numbers of the recipe `transfer` say about the paper's claims, and where they do not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regraft.jobs.transfer.job import pair_of
from regraft.recipes.claims import above, below, difference
from regraft.recipes.compare import differences, level, plain, signed, values, verdict
from regraft.recipes.curves import Point, by_epoch, curves_of, seconds_to
from regraft.recipes.recipe import Findings
from regraft.report import Claim, Row, Run, estimate, paired_difference

from .figures import figures

FAR = 5.0
"""Points from which on a transfer counts as far above the naive one; the bound is ours."""
NO_BARRIER = 0.05
"""Nats of a barrier that counts as none; the bound is ours."""
_AS_GOOD = 1.0  # points that FGMT may lose to GMT and still count as good
THEN = "then="
"""What the last part of a setting begins with that trains on otherwise, from another's transfers."""
_NETWORKS = "networks/"
_REGIMES = {
    "lr": "A high learning rate hides",
    "unnormalised": "Inputs that are not normalised hide",
}
_PARTS = {
    "gradient_seconds": "gradients",
    "contraction_seconds": "contractions",
    "assignment_seconds": "assignments",
    "tracing_seconds": "tracing the network",
    "choosing_seconds": "choosing the step on validation images",
}


def read(runs: list[Run], rows: list[Row]) -> Findings:
    """Return claims, text and figures of a finished recipe."""
    runs = [run for run in runs if run.finished]
    settings = list(dict.fromkeys(r.setting for r in runs if not r.setting.startswith(_NETWORKS)))
    full = [s for s in settings if values(runs, s, "scratch")]
    claims: list[Claim] = []
    for setting in settings:
        again = _base(setting) != setting
        claims += [] if again else _untrained(runs, setting)
        claims += _trained_on(runs, setting) if setting in full else []
        claims += _connected(runs, setting) if setting in full and not again else []
    for setting in settings:
        claims += _hidden(runs, setting, settings)
    text = "\n\n".join(said for s in full if (said := _spent(runs, s)))
    own = [s for s in settings if _base(s) == s]
    return Findings(claims=claims, text=text, figures=figures(runs, own, full))


def _base(setting: str) -> str:
    """Return the setting whose transfers a setting trains on from: itself, or another."""
    base, _, last = setting.rpartition("/")
    return base if last.startswith(THEN) else setting


def _untrained(runs: list[Run], setting: str) -> list[Claim]:
    """Read the accuracies before any training."""
    where = {
        "untrained_best_accuracy": "at the step chosen on validation images",
        "untrained_final_accuracy": "at the last step",
        "along_accuracy": "in the mean of all steps",
    }
    regime = _regime(setting) is not None
    claims: list[Claim] = []
    for arm in ("gmt", "fgmt"):
        for metric, words in where.items():
            if regime and metric != "along_accuracy":
                continue
            paper = (
                f"Before any training {arm.upper()} is far above the naive transfer, by {FAR:g} points "
                f"or more, {words}"
            )
            far: dict[str, Any] = {"metric": metric, "levels": True, "decide": above(FAR)}
            claims += difference(runs, setting, arm, "naive", paper, **far)
    if regime:
        return claims
    best: dict[str, Any] = {"metric": "untrained_best_accuracy", "levels": True}
    for other, decide, paper in (
        ("gmt", above(-_AS_GOOD), "FGMT is as good as GMT before training, within one point"),
        (
            "initial_weights",
            None,
            "Our control: matching gradients beats matching the two initialisations alone",
        ),
    ):
        claims += difference(runs, setting, "fgmt", other, paper, decide=decide, **best)
    return claims


def _trained_on(runs: list[Run], setting: str) -> list[Claim]:
    """Read training after the transfer: one epoch, all of it, and the seconds it takes."""
    curves = {arm: curves_of(runs, setting, arm) for arm in ("naive", "gmt", "fgmt", "scratch")}
    first = {
        arm: {seed: at[1.0] for seed, c in by_seed.items() if 1.0 in (at := by_epoch(c))}
        for arm, by_seed in curves.items()
    }
    claims: list[Claim] = []
    for arm in ("gmt", "fgmt"):
        for other, words in (
            ("scratch", "training from scratch"),
            ("naive", "training on from the naive transfer (our control)"),
        ):
            if not first[arm].keys() & first[other].keys():
                continue
            gain = paired_difference(first[arm], first[other])
            paper = f"After one epoch {arm.upper()} is above {words} ({setting})"
            note = f"{signed(gain)} points on validation images, {verdict(gain)}."
            claims.append(Claim(paper=paper, held=above()(gain), evidence=[setting], note=note))
        full = curves_of(runs, f"{_NETWORKS}{_base(setting)}", "trained")
        full = {seed: full[own] for seed in curves[arm] if (own := pair_of(seed)[1]) in full}
        scratch = curves["scratch"]
        claims += _faster(curves[arm], scratch, setting, arm, "as long from scratch")
        claims += _faster(curves[arm], full, setting, arm, "as the source was, in full")
    return claims


def _faster(
    curves: Mapping[int, list[Point]],
    others: Mapping[int, list[Point]],
    setting: str,
    arm: str,
    words: str,
) -> list[Claim]:
    """Read whether an arm reaches the last accuracy of another training in fewer seconds."""
    seeds = sorted(seed for seed in curves.keys() & others.keys() if others[seed])
    goals = {seed: others[seed][-1][2] for seed in seeds}
    mine = {s: at for s in seeds if (at := seconds_to(curves[s], goals[s])) is not None}
    theirs = {s: at for s in mine if (at := seconds_to(others[s], goals[s])) is not None}
    if not seeds:
        return []
    note = f"It gets there with {len(mine)} of {len(seeds)} seeds"
    if len(mine) < len(seeds):
        note += " (one that never does decides that this did not hold, and is in no mean)"
    gain = paired_difference(mine, theirs) if mine else None
    if gain is not None:
        means = [estimate(side.values()).mean for side in (mine, theirs)]
        note += (
            f", after {means[0]:.1f} s instead of {means[1]:.1f} s ({signed(gain)} s, the "
            "transfer counted)"
        )
    # A seed that never gets there has no time: no mean over all of them could be said.
    held = below()(gain) if len(mine) == len(seeds) else False
    if not held:
        note += "; where the time goes is said below"
    paper = (
        f"{arm.upper()} and training on reach, in fewer seconds in all, the validation accuracy of the "
        f"target trained {words} ({setting})"
    )
    return [Claim(paper=paper, held=held, evidence=[setting], note=f"{note}.")]


def _connected(runs: list[Run], setting: str) -> list[Claim]:
    """Read the barriers on the lines to the transferred network, and between both solutions."""
    claims: list[Claim] = []
    for short, words in (
        ("target", "the target's own solution"),
        ("source", "the permuted source"),
    ):
        own, naive = (level(runs, setting, a, f"{short}_barrier") for a in ("fgmt", "naive"))
        if own is None or naive is None:
            continue
        paper = f"A straight line without barrier connects {words} with the transferred network"
        note = (
            f"Barrier of the loss {plain(own, 3)} nats by FGMT, {plain(naive, 3)} naive; up to "
            f"{NO_BARRIER:g} counts as none."
        )
        held = below(NO_BARRIER)(own)
        claims.append(Claim(paper=f"{paper} ({setting})", held=held, evidence=[setting], note=note))
    paper = (
        "The permutation that carries the run over brings the source's solution closer to the target's "
        "own: a lower barrier between them"
    )
    closer: dict[str, Any] = {"metric": "between_barrier", "unit": "nats", "digits": 3}
    claims += difference(
        runs, setting, "fgmt", "naive", paper, decide=below(), levels=True, **closer
    )
    return claims


def _hidden(runs: list[Run], setting: str, settings: Sequence[str]) -> list[Claim]:
    """Read whether the effect is smaller in a regime that is said to hide it."""
    kind, other = _regime(setting), setting.rpartition("/")[0]
    if kind is None or other not in settings:
        return []
    gaps = [differences(runs, s, "fgmt", "naive", "along_accuracy") for s in (setting, other)]
    if not gaps[0].keys() & gaps[1].keys():
        return []
    change = paired_difference(gaps[0], gaps[1])
    here, there = (estimate(side.values()).mean for side in gaps)
    return [
        Claim(
            paper=f"{_REGIMES[kind]} the gain over the naive transfer ({setting})",
            held=below()(change),
            evidence=[setting, other],
            note=(
                f"FGMT minus naive in the mean of all steps: {here:+.1f} points here, {there:+.1f} in "
                f"{other}; difference {signed(change)}."
            ),
        )
    ]


def _regime(setting: str) -> str | None:
    last = setting.rpartition("/")[2].partition("=")[0]
    return last if last in _REGIMES else None


def _spent(runs: list[Run], setting: str) -> str:
    """Say where the seconds of a transfer and of the training afterwards go."""
    said = []
    for arm in ("gmt", "fgmt"):
        before = level(runs, setting, arm, "transfer_seconds")
        training = level(runs, setting, arm, "training_seconds")
        if before is None or training is None:
            continue
        parts = ", ".join(
            f"{words} {part.mean:.2f}"
            for key, words in _PARTS.items()
            if (part := level(runs, setting, arm, key)) is not None
        )
        said.append(
            f"{arm.upper()} took {before.mean:.2f} s before training ({parts}; contractions and "
            f"assignments are sums over threads), training on {training.mean:.2f} s"
        )
    scratch = level(runs, setting, "scratch", "training_seconds")
    if not said or scratch is None:
        return ""
    return (
        f"**{setting}**: {'. '.join(said)}. As many epochs from scratch took {scratch.mean:.2f} s."
    )
