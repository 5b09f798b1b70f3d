"""What the numbers of the `frozen` recipe say about the paper's claims, and where they do not hold."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.report import Claim, Estimate, Row, Run, efficiency, estimate, paired_difference

from .recipe import Reading

_SMALLER = 40.3  # the paper's ratio of bytes for a frozen graph ticket
_AIM = 50.0
_MARGIN = 0.5  # points by which "no lower" may fall short at the lower end of the interval
_SAME_BYTES = ("dense_same_bytes", "dense_4bit_same_bytes", "sparse_same_bytes")


def read(runs: list[Run], rows: list[Row]) -> Reading:
    """Return claims, text and figures of a finished recipe."""
    graphs = [s for s in _settings(rows) if "/frozen=" not in s]
    shares = [s for s in _settings(rows) if "/frozen=" in s]
    claims: list[Claim] = []
    sentences: list[str] = []
    for setting in graphs:
        more, text = _against_twin(runs, rows, setting)
        claims += more
        sentences.append(text)
    if shares:
        more, texts = _against_shares(runs, rows, shares)
        claims += more
        sentences += texts
    figures = {}
    drawn = [r for r in rows if r.arm != "dense_narrow"]
    if any(r.setting in shares for r in drawn):
        figures["pareto"] = efficiency(
            [r for r in drawn if r.setting in shares], "stored_bytes", along="frozen"
        )
    if graphs:
        figures["bytes"] = efficiency([r for r in drawn if r.setting in graphs], "stored_bytes")
    return Reading(claims=claims, text="\n\n".join([*sentences, _NOTES]), figures=figures)


def gap(runs: Sequence[Run], setting: str, arm: str, other: str) -> Estimate | None:
    """Return test accuracy of `arm` minus that of `other`, paired by seed, or None without both."""
    found = {
        name: {
            r.seed: r.result.metrics["test_accuracy"]
            for r in runs
            if r.result is not None and (r.setting, r.arm) == (setting, name)
        }
        for name in (arm, other)
    }
    if not found[arm].keys() & found[other].keys():
        return None
    return paired_difference(found[arm], found[other])


def _against_twin(runs: list[Run], rows: list[Row], setting: str) -> tuple[list[Claim], str]:
    """Read one setting with a weight-trained twin: is the ticket smaller and no worse?"""
    here = {r.arm: r for r in rows if r.setting == setting}
    dense = here["dense"]
    tickets = [r for r in here.values() if r.arm.startswith(("frozen", "dense_source", "pruned"))]
    claims = []
    paper = here.get("frozen")
    if paper is not None:
        difference, ratio = gap(runs, setting, "frozen", "dense"), _ratio(dense, paper)
        claims.append(
            Claim(
                paper=(
                    "A ticket of a partly frozen graph network beats the trained network at a "
                    f"{_SMALLER}th of its bytes ({setting})"
                ),
                held=_above(difference, 0.0) and ratio >= _SMALLER,
                evidence=[setting],
                note=f"{_points(difference)} points at {ratio:.1f}x fewer bytes (F = 0.2, s = 0.5).",
            )
        )
    small = [r for r in tickets if _ratio(dense, r) >= _AIM]
    if small:
        best = max(small, key=lambda r: _validated(runs, r))
        difference = gap(runs, setting, best.arm, "dense")
        claims.append(
            Claim(
                paper=(
                    f"Our aim beyond the paper: {_AIM:g} times fewer bytes than the trained network "
                    f"at no lower accuracy ({setting})"
                ),
                held=_above(difference, -_MARGIN)
                and difference is not None
                and difference.mean >= 0,
                evidence=[setting],
                note=(
                    f"Best on validation of the tickets that small: {best.arm}, "
                    f"{_points(difference)} points at {_ratio(dense, best):.0f}x fewer bytes (no lower: "
                    f"a mean difference of at least 0 whose interval stays above -{_MARGIN:g})."
                ),
            )
        )
    rivals = [here[arm] for arm in _SAME_BYTES if arm in here]
    reference = here.get("frozen_coded")
    if rivals and reference is not None:
        rival = max(rivals, key=lambda r: r.mean)
        difference = gap(runs, setting, "frozen_coded", rival.arm)
        claims.append(
            Claim(
                paper=(
                    "Same-bytes control: a ticket is more accurate than every trained network of its "
                    f"own size ({setting})"
                ),
                held=_above(difference, 0.0),
                evidence=[setting],
                note=(
                    f"frozen_coded minus the strongest of them, {rival.arm}: {_points(difference)} "
                    "points. Where it does not hold, training and rounding a narrow network is the "
                    "better use of the bytes."
                ),
            )
        )
    sizes = ", ".join(
        f"{r.arm} {_points(gap(runs, setting, r.arm, 'dense'))} at {_ratio(dense, r):.0f}x"
        for r in tickets
    )
    return claims, f"{setting}: minus the trained twin, in points, and fewer bytes: {sizes}."


def _against_shares(
    runs: list[Run], rows: list[Row], settings: list[str]
) -> tuple[list[Claim], list[str]]:
    """Read the sweep over frozen shares: freezing against pruning, and against coding alone."""
    claims, sentences = [], []
    for arm, other, paper, why in (
        (
            "frozen",
            "pruned_source",
            "Freezing (pruned and locked) finds better tickets than a randomly pruned network of the "
            "same mask bits (paper: up to 14.12 points on ImageNet)",
            "With half of the free weights kept on both sides, locked weights are noise that the "
            "search cannot remove; the paper compares at equal total sparsity, where a randomly "
            "pruned network near its own sparsity has nothing left to choose.",
        ),
        (
            "frozen",
            "pruned_source_near",
            "Freezing beats a randomly pruned network that is searched just above its own sparsity",
            "",
        ),
        (
            "frozen",
            "dense_source",
            "At equal bytes, freezing beats a ticket of the whole network whose sparse mask is "
            "entropy-coded",
            "A sparse, coded mask spends the same bits on choosing among all weights.",
        ),
    ):
        gaps = {s: gap(runs, s, arm, other) for s in settings}
        known = {s: g for s, g in gaps.items() if g is not None}
        if not known:
            continue
        each = ", ".join(f"{_share(s)}: {_points(g)}" for s, g in known.items())
        overall = _over_all(runs, list(known), arm, other)
        held = _above(overall, 0.0)
        claims.append(
            Claim(
                paper=f"{paper}, mean over frozen shares",
                held=held,
                evidence=list(known),
                note=f"{_points(overall)} points; by share: {each}." + ("" if held else f" {why}"),
            )
        )
    rivals = []
    for setting in settings:
        here = {r.arm: r for r in rows if r.setting == setting}
        found = [here[a] for a in _SAME_BYTES if a in here]
        tickets = [r for a, r in here.items() if a in ("frozen", "pruned_source", "dense_source")]
        if found and tickets:
            best = max(tickets, key=lambda r: _validated(runs, r))
            rival = max(found, key=lambda r: r.mean)
            difference = gap(runs, setting, best.arm, rival.arm)
            rivals.append((setting, best.arm, rival.arm, difference))
    if rivals:
        wins = [s for s, _, _, d in rivals if _above(d, 0.0)]
        each = "; ".join(f"{_share(s)}: {a} minus {b} {_points(d)}" for s, a, b, d in rivals)
        claims.append(
            Claim(
                paper=(
                    "Same-bytes control: the best ticket is more accurate than every trained network "
                    "of its own size, at every share"
                ),
                held=len(wins) == len(rivals),
                evidence=[s for s, *_ in rivals],
                note=f"{each}. Trained weights of a narrow network carry more a byte here.",
            )
        )
    return claims, sentences


def _over_all(runs: list[Run], settings: list[str], arm: str, other: str) -> Estimate | None:
    """Return the gap averaged over settings within each seed first."""
    by_seed: dict[int, list[float]] = {}
    for setting in settings:
        for seed in {r.seed for r in runs}:
            found = gap([r for r in runs if r.seed == seed], setting, arm, other)
            if found is not None:
                by_seed.setdefault(seed, []).append(found.mean)
    return estimate(sum(g) / len(g) for g in by_seed.values()) if by_seed else None


def _validated(runs: list[Run], row: Row) -> float:
    """Return the mean validation accuracy of a row: what may choose among tickets."""
    return estimate(
        r.result.metrics["validation_accuracy"]
        for r in runs
        if r.result is not None and (r.setting, r.arm) == (row.setting, row.arm)
    ).mean


def _settings(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(r.setting for r in rows))


def _share(setting: str) -> str:
    return f"F = {setting.rpartition('frozen=')[2]}"


def _ratio(dense: Row, ticket: Row) -> float:
    return (dense.stored_bytes or 0) / max(ticket.stored_bytes or 0, 1)


def _above(found: Estimate | None, limit: float) -> bool:
    return found is not None and found.low is not None and found.low > limit


def _points(found: Estimate | None) -> str:
    if found is None:
        return "unknown"
    if found.low is None or found.high is None:
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}]"


_NOTES = (
    "Hyperparameters of every arm were chosen on validation nodes or images with seeds that are not "
    "reported. Graph networks are tested in the epoch of the highest validation accuracy, image "
    "networks in the last epoch. The test set chose nothing but the strongest of the trained rivals."
    "\n\n"
    "Stored bytes of a ticket are those of its file on disk, header, checksums and statistics "
    "included; of trained weights float32 values alone; under `sparse_same_bytes` the kept values "
    "alone (its random mask comes from a seed); of rounded weights the file on disk. "
    "dense_source searches the whole random network, pruned_source one of which the share F was "
    "pruned at random, frozen one of which p was pruned and l locked (F = p + l). dense_narrow is "
    "the training that the 4-bit control is rounded from. A ratio counts the mask bits of free "
    "positions as they are coded, on both sides with everything else that the file needs: with the "
    "statistics of normalisation on the dense side only, the paper's own counting, ratios would be "
    "higher."
)
