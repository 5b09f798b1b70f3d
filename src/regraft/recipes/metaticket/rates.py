"""What outer rates do across domains: the scale `rates` of the recipe `metaticket`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from regraft.recipes.claims import above, every
from regraft.recipes.compare import gap, level, line_of, signed, values, verdict
from regraft.report import Claim, Line, Panel, Run, estimate, lines

AT_RATE = "-lr="
"""Parts a method's name from an outer rate that was not chosen, in the name of an arm."""
_METHODS = ("maml", "meta-ticket")


def at_rates(runs: list[Run], setting: str, method: str = "") -> dict[str, float]:
    """Return the arms of a method, or of all, at rates that were not chosen, and these rates."""
    arms = dict.fromkeys(r.arm for r in runs if r.setting == setting)
    split = {a: a.partition(AT_RATE) for a in arms}
    return {a: float(s[2]) for a, s in split.items() if s[2] and s[0].startswith(method)}


def rate_claims(
    runs: list[Run], setting: str, domains: Sequence[str], judged: Mapping[str, str]
) -> list[Claim]:
    """Return the claims on the ticket against MAML at every rate, and at equal accuracy at home.

    Args:
        runs: All runs.
        setting: Where rates were varied; there are no claims of another.
        domains: Names of the other sets.
        judged: How the query images were normalised, by the ending of a metric.
    """
    claims = []
    for name in ("test", *domains):
        for end, how in judged.items():
            claims += _at_every_rate(runs, setting, name, end, how)
            if name != "test":
                claims += _at_equal_home(runs, setting, name, end, how)
    return claims


def _at_every_rate(runs: list[Run], setting: str, name: str, end: str, how: str) -> list[Claim]:
    metric, fixed = f"{name}_accuracy{end}", at_rates(runs, setting, "maml")
    domain = "new classes of its own domain" if name == "test" else name
    others = {"maml": "chosen at home", **{a: f"{rate:g}" for a, rate in fixed.items()}}
    gaps = {n: gap(runs, setting, "meta-ticket", a, metric) for a, n in others.items()}
    if not fixed or not all(gaps.values()):
        return []
    paper = (
        f"Trained on Omniglot, meta-ticket is better on {domain} than maml at every outer rate that was "
        f"tried, {how} ({setting})"
    )
    said = "; ".join(f"{n}: {signed(e)}, {verdict(e)}" for n, e in gaps.items())
    held = every(above()(e) for e in gaps.values())
    note = f"meta-ticket minus maml at the rate {said}."
    return [Claim(paper=paper, held=held, evidence=[setting], note=note)]


def _at_equal_home(runs: list[Run], setting: str, name: str, end: str, how: str) -> list[Claim]:
    """Return the claim that the ticket is above MAML of the same accuracy at home, seed by seed."""
    rates = at_rates(runs, setting, "maml")
    chosen = values(runs, setting, "maml", "lr")
    home, away = (f"{n}_accuracy{end}" for n in ("test", name))
    mine = [values(runs, setting, "meta-ticket", metric) for metric in (home, away)]
    theirs = {a: [values(runs, setting, a, m) for m in (home, away)] for a in ("maml", *rates)}
    differences = []
    for seed in sorted(chosen.keys() & mine[1].keys()) if rates else ():
        at = {**rates, "maml": chosen[seed]}
        own = [theirs[a] for a in sorted(at, key=at.__getitem__) if seed in theirs[a][1]]
        there = _crossing([(h[seed], o[seed]) for h, o in own], mine[0][seed])
        if there is not None:
            differences.append(mine[1][seed] - there)
    if not differences:
        return []
    mean = estimate(differences)
    note = (
        "meta-ticket minus maml, interpolated between the lowest two rates around it: "
        f"{signed(mean)} points, {verdict(mean)}, n = {len(differences)} seeds."
    )
    paper = (
        f"Trained on Omniglot, meta-ticket is better on {name} than maml of the same accuracy on new "
        f"classes of its own domain, {how} ({setting})"
    )
    return [Claim(paper=paper, held=above()(mean), evidence=[setting], note=note)]


def _crossing(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """Return y where a line through points first has this x, in their order; None if it never does."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if min(x0, x1) <= x <= max(x0, x1):
            return y0 if x0 == x1 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


def rate_figures(runs: list[Run], setting: str, domains: Sequence[str]) -> dict[str, str]:
    """Return accuracies elsewhere against those at home, a point a rate; nothing of other settings."""
    panels = [
        Panel(
            title=name, lines=[line for m in _METHODS if (line := _along(runs, setting, m, name)).x]
        )
        for name in domains
        if at_rates(runs, setting) and level(runs, setting, "maml", f"{name}_accuracy")
    ]
    if not panels:
        return {}
    x, y = "Accuracy in the own domain, by outer rate (%)", "Accuracy in the other domain (%)"
    return {"trade-off": lines(panels, x_label=x, y_label=y, spread="bars", beside=False)}


def _along(runs: list[Run], setting: str, method: str, name: str) -> Line:
    """Return a method's accuracy on a set by that at home, over its outer rates."""
    chosen = values(runs, setting, method, "lr")
    at = {**at_rates(runs, setting, method), method: next(iter(chosen.values()), 0.0)}
    arms = sorted(at, key=at.__getitem__)
    both = [[level(runs, setting, a, f"{n}_accuracy") for n in ("test", name)] for a in arms]
    return line_of(method, {h.mean: e for h, e in both if h is not None and e is not None})
