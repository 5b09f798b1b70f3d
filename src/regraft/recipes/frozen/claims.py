"""What the numbers of the `frozen` recipe say about the paper's claims, and where they do not hold."""

from __future__ import annotations

from regraft.recipes.claims import above, every, no_worse, over_settings
from regraft.recipes.compare import gap, level, signed, verdict
from regraft.recipes.notes import read_data
from regraft.recipes.recipe import Findings
from regraft.report import Claim, Row, Run, efficiency, wording

_SMALLER, _AIM = 40.3, 50.0  # the paper's ratio of bytes for a frozen graph ticket, and ours
_MARGIN = 0.5  # points by which "no lower" may fall short at the lower end of the interval
_ABOUT = 1.1
"""How much larger a trained network may be and still count as of a ticket's size."""
_TICKETS = ("frozen", "frozen_few_locked", "pruned_source", "dense_source")
_SAME_BYTES = (
    "dense_same_bytes",
    "dense_4bit_same_bytes",
    "dense_4bit_coded_same_bytes",
    "pruned_4bit_coded_same_bytes",
    "ternary_same_bytes",
    "binary_same_bytes",
    "sparse_same_bytes",
)


def read(runs: list[Run], rows: list[Row]) -> Findings:
    """Return claims, text and figures of a finished recipe."""
    settings = list(dict.fromkeys(r.setting for r in rows))
    graphs = [s for s in settings if "/frozen=" not in s]
    shares = [s for s in settings if s not in graphs]
    claims: list[Claim] = []
    sentences: list[str] = []
    for setting in graphs:
        here = {r.arm: r for r in rows if r.setting == setting}
        claims += _against_twin(runs, here, setting)
        claims += _against_rivals(runs, here, setting)
        sentences.append(_sizes(runs, here, setting))
    paper = "Our question: freezing itself adds accuracy to a coded sparse ticket of equal bytes"
    for each in (False, True) if len(graphs) > 1 else ():
        both = ("frozen_coded", "dense_source")
        claims += over_settings(runs, graphs, *both, paper, over="networks", each=each)
    names = {s: _share(s) for s in shares}
    for claim in read_data(__package__ or "", "sweep.toml")["claims"]:
        claims += over_settings(runs, names, over="frozen shares", **claim)
    claims += _best_at_each_share(runs, rows, shares)
    figures = {}
    if shares:
        drawn = [r for r in rows if r.setting in shares]
        figures["pareto"] = efficiency(drawn, "stored_bytes", along="frozen")
    if graphs:
        figures["bytes"] = efficiency([r for r in rows if r.setting in graphs], "stored_bytes")
    return Findings(claims=claims, text="\n\n".join(sentences), figures=figures)


def _against_twin(runs: list[Run], here: dict[str, Row], setting: str) -> list[Claim]:
    """Read whether a ticket is that much smaller than the weight-trained twin, and no worse."""
    better = (
        "A ticket of a partly frozen graph network is more accurate than the trained network at "
        f"{_SMALLER:g} times fewer bytes ({setting})"
    )
    aim = f"Our aim beyond the paper: {_AIM:g} times fewer bytes at no lower accuracy ({setting})"
    papers = ((better, _SMALLER, above()), (aim, _AIM, no_worse(_MARGIN)))
    dense = here["dense"]
    claims = []
    for paper, times, decide in papers:
        small = [
            r for r in here.values() if r.arm.startswith("frozen") and _ratio(dense, r) >= times
        ]
        note = f"No frozen ticket was {times:g} times smaller."
        held: bool | None = False
        if small:
            best = max(small, key=lambda r: _validated(runs, r))
            estimate = gap(runs, setting, best.arm, "dense")
            held = decide(estimate)
            note = (
                f"{best.arm}, the best on validation of the frozen tickets that small, minus the "
                f"twin: {signed(estimate)} points at {_ratio(dense, best):.0f}x fewer bytes."
            )
        if times == _AIM:
            note += f" No lower: a mean of at least 0 whose interval stays above {-_MARGIN:g}."
        elif (raw := here.get("frozen_raw")) is not None:
            note += (
                " At one bit for each free weight, as the paper counts (frozen_raw): "
                f"{signed(gap(runs, setting, 'frozen_raw', 'dense'))} points; 32 / 0.8 = 40 times "
                f"fewer bits of weights and masks alone, {_ratio(dense, raw):.1f} as files."
            )
        claims.append(Claim(paper=paper, held=held, evidence=[setting], note=note))
    return claims


def _against_rivals(runs: list[Run], here: dict[str, Row], setting: str) -> list[Claim]:
    """Read the tickets of a graph network against the strongest trained network of their bytes."""
    claims = []
    for arm in ("frozen", "frozen_coded"):
        if arm not in here:
            continue
        ticket, most = here[arm], _ABOUT * (here[arm].stored_bytes or 0)
        trained = [r for a, r in here.items() if a.removesuffix("_frozen") in _SAME_BYTES]
        rivals = [r for r in trained if (r.stored_bytes or 0) <= most]
        if not rivals:
            continue
        rival = max(rivals, key=lambda r: r.mean)
        estimate = gap(runs, setting, arm, rival.arm)
        claims.append(
            Claim(
                paper=(
                    f"Same-bytes control: {arm} is more accurate than every trained network of at most a "
                    f"tenth more bytes ({setting})"
                ),
                held=above()(estimate),
                evidence=[setting],
                note=(
                    f"Minus the strongest of {', '.join(r.arm for r in rivals)}, which is {rival.arm} "
                    f"({wording.size(rival.stored_bytes)}, the ticket "
                    f"{wording.size(ticket.stored_bytes)}): {signed(estimate)} points, "
                    f"{verdict(estimate, 'won', 'lost')}."
                ),
            )
        )
    return claims


def _sizes(runs: list[Run], here: dict[str, Row], setting: str) -> str:
    """Say how far tickets and narrow networks are from the twin, and how much smaller."""

    def each(rows: list[Row], name: str = "{} ") -> str:
        return ", ".join(
            f"{name.format(r.arm)}{signed(gap(runs, setting, r.arm, 'dense'))} at "
            f"{_ratio(here['dense'], r):.0f}x"
            for r in rows
        )

    tickets = [r for a, r in here.items() if a.startswith(("frozen", "dense_source", "pruned"))]
    narrow = [r for a, r in here.items() if a.startswith("dense_narrow")]
    text = (
        f"{setting}: minus the trained twin, in points, and how many times fewer bytes: "
        f"{each(tickets)}."
    )
    if narrow:
        text += (
            " A twin that is wider than its task needs flatters every such ratio. Trained narrower, in "
            f"float32, minus the twin: {each(narrow, '')}."
        )
    return text


def _best_at_each_share(runs: list[Run], rows: list[Row], settings: list[str]) -> list[Claim]:
    """Read the best ticket of each frozen share against the strongest network of its bytes."""
    states, notes, evidence = [], [], []
    for setting in settings:
        here = {r.arm: r for r in rows if r.setting == setting}
        rivals = [here[a] for a in _SAME_BYTES if a in here]
        tickets = [r for a, r in here.items() if a in _TICKETS]
        if not rivals or not tickets:
            continue
        best = max(tickets, key=lambda r: _validated(runs, r))
        rival = max(rivals, key=lambda r: r.mean)
        estimate = gap(runs, setting, best.arm, rival.arm)
        states.append(above()(estimate))
        evidence.append(setting)
        notes.append(
            f"{_share(setting)}: {best.arm} ({wording.size(best.stored_bytes)}) minus {rival.arm} "
            f"({wording.size(rival.stored_bytes)}) {signed(estimate)}, "
            f"{verdict(estimate, 'won', 'lost')}"
        )
    if not states:
        return []
    paper = (
        "Same-bytes control: the best ticket is more accurate than every trained network of about its "
        "size, at every share"
    )
    return [Claim(paper=paper, held=every(states), evidence=evidence, note=f"{'; '.join(notes)}.")]


def _validated(runs: list[Run], row: Row) -> float:
    """Return the mean validation accuracy of a row: what may choose among tickets."""
    estimate = level(runs, row.setting, row.arm, "validation_accuracy")
    return estimate.mean if estimate is not None else float("-inf")


def _share(setting: str) -> str:
    return f"F = {setting.rpartition('frozen=')[2]}"


def _ratio(dense: Row, ticket: Row) -> float:
    return (dense.stored_bytes or 0) / max(ticket.stored_bytes or 0, 1)
