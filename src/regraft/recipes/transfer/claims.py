"""What the numbers of the recipe `transfer` say about the paper's claims, and where they do not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regraft.jobs.transfer.job import pair_of
from regraft.recipes.compare import gap, signed, values, verdict
from regraft.recipes.recipe import Findings
from regraft.report import Claim, Row, Run, estimate, paired_difference

from .figures import Point, by_epoch, curves_of, figures, seconds_to

FAR = 5.0
"""Points from which on a transfer counts as far above the naive one; the bound is ours."""
NO_BARRIER = 0.05
"""Nats of a barrier that counts as none; the bound is ours."""
_AS_GOOD = 1.0  # points that FGMT may lose to GMT and still count as good
_NETWORKS = "networks/"
_REGIMES = {"lr": "a high learning rate", "unnormalised": "inputs that are not normalised"}
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
        claims += _untrained(runs, setting)
        if setting in full:
            claims += [*_trained_on(runs, setting), *_connected(runs, setting)]
    for setting in settings:
        claims += _hidden(runs, setting, settings)
    spent = [text for s in full if (text := _spent(runs, s))]
    text = "\n\n".join([*spent, _NOTES])
    return Findings(claims=claims, text=text, figures=figures(runs, settings, full))


def _untrained(runs: list[Run], setting: str) -> list[Claim]:
    """Read the accuracies before any training."""
    claims = []

    def claim(
        paper: str, arm: str, other: str, metric: str, least: float, held: bool | None = None
    ) -> None:
        found = gap(runs, setting, arm, other, metric)
        if found is None:
            return
        one, two = (
            estimate(values(runs, setting, name, metric).values()).mean for name in (arm, other)
        )
        if held is None:
            held = found.low is not None and found.low > 0 and found.mean >= least
        claims.append(
            Claim(
                paper=f"{paper} ({setting})",
                held=held,
                evidence=[setting],
                note=(
                    f"{arm} {one:.1f}%, {other} {two:.1f}%: {signed(found)} points, "
                    f"{verdict(found)}."
                ),
            )
        )

    where = {
        "untrained_best_accuracy": "at the step chosen on validation images",
        "untrained_final_accuracy": "at the last step",
        "along_accuracy": "in the mean of all steps",
    }
    regime = _regime(setting) is not None
    for arm in ("gmt", "fgmt"):
        for metric, words in where.items():
            if regime and metric != "along_accuracy":
                continue
            claim(
                f"Before any training {arm.upper()} is far above the naive transfer, by {FAR:g} "
                f"points or more, {words}",
                arm,
                "naive",
                metric,
                FAR,
            )
    if regime:
        return claims
    best = "untrained_best_accuracy"
    found = gap(runs, setting, "fgmt", "gmt", best)
    if found is not None:
        held = found.low is not None and found.low > -_AS_GOOD
        claim(
            "FGMT is as good as GMT before training, within one point", "fgmt", "gmt", best, 0, held
        )
    claim(
        "Our control: matching gradients beats matching the two initialisations alone",
        "fgmt",
        "initial_weights",
        best,
        0,
    )
    return claims


def _trained_on(runs: list[Run], setting: str) -> list[Claim]:
    """Read training after the transfer: one epoch, all of it, and the seconds it takes."""
    curves = {arm: curves_of(runs, setting, arm) for arm in ("naive", "gmt", "fgmt", "scratch")}
    first = {
        arm: {seed: at[1.0] for seed, c in found.items() if 1.0 in (at := by_epoch(c))}
        for arm, found in curves.items()
    }
    claims = []
    for arm in ("gmt", "fgmt"):
        for other, words in (
            ("scratch", "training from scratch"),
            ("naive", "training on from the naive transfer (our control)"),
        ):
            if first[arm].keys() & first[other].keys():
                found = paired_difference(first[arm], first[other])
                claims.append(
                    Claim(
                        paper=f"After one epoch {arm.upper()} is above {words} ({setting})",
                        held=found.low is not None and found.low > 0,
                        evidence=[setting],
                        note=f"{signed(found)} points on validation images, {verdict(found)}.",
                    )
                )
        full = curves_of(runs, f"{_NETWORKS}{setting}", "trained")
        full = {seed: full[own] for seed in curves[arm] if (own := pair_of(seed)[1]) in full}
        claims += [
            claim
            for claim in (
                _faster(curves[arm], curves["scratch"], setting, arm, "as long from scratch"),
                _faster(curves[arm], full, setting, arm, "as the source was, in full"),
            )
            if claim is not None
        ]
    return claims


def _faster(
    curves: Mapping[int, list[Point]],
    others: Mapping[int, list[Point]],
    setting: str,
    arm: str,
    words: str,
) -> Claim | None:
    """Read whether an arm reaches the last accuracy of another training in fewer seconds."""
    seeds = sorted(seed for seed in curves.keys() & others.keys() if others[seed])
    if not seeds:
        return None
    mine: dict[int, float] = {}
    theirs: dict[int, float] = {}
    for seed in seeds:
        goal = others[seed][-1][2]
        own, other = seconds_to(curves[seed], goal), seconds_to(others[seed], goal)
        if own is not None and other is not None:
            mine[seed], theirs[seed] = own, other
    note = f"It gets there with {len(mine)} of {len(seeds)} seeds"
    found = paired_difference(mine, theirs) if mine else None
    if found is not None:
        means = [estimate(side.values()).mean for side in (mine, theirs)]
        note += (
            f", after {means[0]:.1f} s instead of {means[1]:.1f} s ({signed(found)} s, the "
            "transfer counted)"
        )
    all_there = len(mine) == len(seeds)
    held = bool(all_there and found and found.high is not None and found.high < 0)
    if not held:
        note += "; where the time goes is said below"
    return Claim(
        paper=(
            f"{arm.upper()} and training on reach, in fewer seconds in all, the validation accuracy of "
            f"the target trained {words} ({setting})"
        ),
        held=held,
        evidence=[setting],
        note=f"{note}.",
    )


def _connected(runs: list[Run], setting: str) -> list[Claim]:
    """Read the barriers on the lines to the transferred network, and between both solutions."""
    claims = []
    for short, words in (
        ("target", "the target's own solution"),
        ("source", "the permuted source"),
    ):
        each = {a: values(runs, setting, a, f"{short}_barrier") for a in ("fgmt", "naive")}
        if not all(each.values()):
            continue
        own, plain = (estimate(found.values()) for found in each.values())
        claims.append(
            Claim(
                paper=(
                    f"A straight line without barrier connects {words} with the transferred network "
                    f"({setting})"
                ),
                held=own.high is not None and own.high <= NO_BARRIER,
                evidence=[setting],
                note=(
                    f"Barrier of the loss {signed(own, 3)} nats by FGMT, {signed(plain, 3)} naive; up to "
                    f"{NO_BARRIER:g} counts as none."
                ),
            )
        )
    found = gap(runs, setting, "fgmt", "naive", "between_barrier")
    if found is not None:
        own, plain = (
            estimate(values(runs, setting, arm, "between_barrier").values())
            for arm in ("fgmt", "naive")
        )
        claims.append(
            Claim(
                paper=(
                    "The permutation that carries the run over brings the source's solution closer to "
                    f"the target's own: a lower barrier between them ({setting})"
                ),
                held=found.high is not None and found.high < 0,
                evidence=[setting],
                note=(
                    f"Barrier of the loss {own.mean:.3f} nats permuted by FGMT, {plain.mean:.3f} as it "
                    f"is, difference {signed(found, 3)}."
                ),
            )
        )
    return claims


def _hidden(runs: list[Run], setting: str, settings: Sequence[str]) -> list[Claim]:
    """Read whether the effect is smaller in a regime that is said to hide it."""
    kind, plain = _regime(setting), setting.rpartition("/")[0]
    if kind is None or plain not in settings:
        return []
    gaps = []
    for one in (setting, plain):
        arms = [values(runs, one, arm, "along_accuracy") for arm in ("fgmt", "naive")]
        gaps.append(
            {seed: arms[0][seed] - arms[1][seed] for seed in arms[0].keys() & arms[1].keys()}
        )
    if not gaps[0].keys() & gaps[1].keys():
        return []
    found = paired_difference(gaps[0], gaps[1])
    here, there = (estimate(side.values()).mean for side in gaps)
    return [
        Claim(
            paper=f"{_REGIMES[kind].capitalize()} hides the gain over the naive transfer ({setting})"
            if kind == "lr"
            else f"{_REGIMES[kind].capitalize()} hide the gain over the naive transfer ({setting})",
            held=found.high is not None and found.high < 0,
            evidence=[setting, plain],
            note=(
                f"FGMT minus naive in the mean of all steps: {here:+.1f} points here, {there:+.1f} in "
                f"{plain}; difference {signed(found)}."
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
        before = values(runs, setting, arm, "transfer_seconds")
        training = values(runs, setting, arm, "training_seconds")
        if not before or not training:
            continue
        parts = ", ".join(
            f"{words} {estimate(found.values()).mean:.2f}"
            for key, words in _PARTS.items()
            if (found := values(runs, setting, arm, key))
        )
        said.append(
            f"{arm.upper()} took {estimate(before.values()).mean:.2f} s before training ({parts}; "
            f"contractions and assignments are sums over threads), training on "
            f"{estimate(training.values()).mean:.2f} s"
        )
    scratch = values(runs, setting, "scratch", "training_seconds")
    if not said or not scratch:
        return ""
    return (
        f"**{setting}**: {'. '.join(said)}. As many epochs from scratch took "
        f"{estimate(scratch.values()).mean:.2f} s."
    )


_NOTES = (
    "Accuracies before training: at the step of the highest validation accuracy, which is where "
    "training goes on from as in the released code, and at the last step; test images choose nothing. "
    "Untrained networks with BatchNorm have statistics of training images, without labels. The mean "
    "over all steps (along accuracy) is the area under the curve: early steps separate methods best. "
    "The oracle knows the target's own training, whose seconds do not count in its row, and is an upper "
    "control, no method."
    "\n\n"
    "Seconds of a transfer are those of all its steps, of tracing the architecture, and of the "
    "validation scores that the step was chosen by; the training of the source counts nowhere, since it "
    "is there already. `scratch` trains for as many epochs as all others; the settings `networks/...` "
    "hold both trainings of the full length, and how long they took."
    "\n\n"
    "A barrier is the loss on a line above the straight line between the losses of its ends. Where one "
    "end is a poor network, as the naive transfer can be, its high loss hides every bump: read the "
    "barriers beside the accuracies. Between barrier is that from the target's own solution to the "
    "permuted source, two trained networks."
)
