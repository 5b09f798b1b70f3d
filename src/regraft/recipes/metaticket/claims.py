"""What the numbers of the recipe `metaticket` say: in its own domain, across domains, against controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regraft.recipes.claims import difference, over_settings
from regraft.recipes.compare import gap, level, line_of, plain, signed, values
from regraft.recipes.recipe import Findings
from regraft.recipes.selection import SELECTION, diverged
from regraft.report import Claim, Line, Panel, Row, Run, estimate, lines

from .rates import at_rates, rate_claims, rate_figures

DOMAINS = ("emnist", "mnist", "fashion_mnist", "digits")
_ARMS = (
    "untrained",
    "meta-ticket",
    "random-mask",
    "maml",
    "maml-equal-time",
    "anil",
    "boil",
    "mgaug",
    "shuffled-mask",
)
_BY_SUPPORT = "_by_support"
_BY = {"transductive": "test_accuracy", "support": f"test_accuracy{_BY_SUPPORT}"}
_JUDGED = {"": "judged with transductive BatchNorm", _BY_SUPPORT: "judged image by image"}
_EQUAL = 0.15
"""Seconds of two arms may differ by so much and be called equal; the bound is ours."""
_IN_DOMAIN = (
    *(
        (other, f"A meta-learned mask is better than the control {other}")
        for other in ("random-mask", "shuffled-mask", "untrained")
    ),
    ("maml", "Meta-ticket is better than MAML on new classes of its own domain, at equal steps"),
    ("maml-equal-time", "Meta-ticket is better than MAML of as many seconds on new classes"),
    ("anil", "Meta-ticket is better than ANIL on new classes of its own domain, at equal steps"),
    ("boil", "Meta-ticket is better than BOIL on new classes of its own domain, at equal steps"),
    ("mgaug", "Meta-ticket is better than MGAug on new classes of its own domain, at equal steps"),
)


def read(runs: list[Run], rows: list[Row]) -> Findings:
    """Return claims, text and figures of a finished recipe."""
    del rows
    settings = [s for s in dict.fromkeys(r.setting for r in runs) if not s.startswith(SELECTION)]
    claims: list[Claim] = []
    for how in ("transductive", "support"):
        of_it = [s for s in settings if _own(s) and ("/support/" in s) == (how == "support")]
        group = {s: s.removeprefix("omniglot/") for s in of_it}
        for other, paper in _IN_DOMAIN:
            claims += over_settings(
                runs,
                group,
                "meta-ticket",
                other,
                f"{paper}, trained with {how} BatchNorm",
                metric=_BY[how],
                each=True,
                **_as_long(runs, of_it, other),
            )
    for setting in (s for s in settings if not _own(s)):
        for arm, other in (
            ("meta-ticket", "untrained"),
            ("maml", "untrained"),
            ("meta-ticket", "maml"),
        ):
            for end in ("", _BY_SUPPORT):
                claims += difference(
                    runs,
                    setting,
                    arm,
                    other,
                    f"Trained on EMNIST, {arm} is better on Omniglot than {other}, {_JUDGED[end]}",
                    metric=f"test_accuracy{end}",
                    levels=True,
                )
    pairs = (("meta-ticket", "untrained"), ("maml", "untrained"), ("meta-ticket", "maml"))
    own = [s for s in settings if _own(s)]
    for domain in DOMAINS:
        for arm, other in pairs:
            for end in ("", _BY_SUPPORT):
                claims += _across(runs, own, domain, arm, other, end)
    for setting in own:
        claims += rate_claims(runs, setting, DOMAINS, _JUDGED)
    parts = [*(_text(runs, s) for s in settings), _rates(runs), diverged(runs)]
    text = "\n\n".join(part for part in parts if part)
    return Findings(claims=claims, text=text, figures=_figures(runs, settings))


def _as_long(runs: list[Run], settings: Sequence[str], other: str) -> dict[str, Any]:
    """Return what a claim of equal seconds says of those that were measured, and whether it decides."""
    if other != "maml-equal-time":
        return {}
    here = [s for s in settings if gap(runs, s, "meta-ticket", other) is not None]
    means = []
    for arm in ("meta-ticket", other):
        own = [r.result for r in _whole(runs, arm) if r.setting in here and r.result is not None]
        took = [result.seconds for result in own if result.seconds]
        means.append(sum(took) / len(took) if took else 0.0)
    mine, theirs = (f"{mean:.1f} s" if mean else "unknown seconds" for mean in means)
    said = f"Training took {mine} (meta-ticket) and {theirs} ({other})"
    if 0 < max(means) <= (1 + _EQUAL) * min(means):
        return {"more": f"{said}."}
    return {
        "more": f"{said}: not equal seconds, so this is undecided.",
        "decide": lambda _: None,
    }


def _whole(runs: list[Run], arm: str) -> list[Run]:
    """Return an arm's runs that did not diverge, whose curves and seconds are of a whole training."""
    own = [r for r in runs if r.arm == arm]
    return [r for r in own if r.result is None or "diverged" not in r.result.metrics]


def _own(setting: str) -> bool:
    """Whether the first test of a setting is of the domain that was trained on."""
    return "-to-" not in setting


def _rates(runs: list[Run]) -> str:
    """Say which outer rate was chosen for each arm; an edge of what was tried is marked."""
    said = []
    for run in runs:
        if run.setting.startswith(SELECTION) and run.result is not None:
            edge = " (edge)" if run.result.metrics["edge"] else ""
            where = run.setting.removeprefix(SELECTION)
            said.append(f"{where} {run.arm} {run.result.metrics['lr']:g}{edge}")
    return f"Outer rates that were chosen: {'; '.join(said)}." if said else ""


def _metric(setting: str) -> str:
    """Return the accuracy that a setting is about: under the BatchNorm policy of its training."""
    return f"test_accuracy{_BY_SUPPORT}" if "/support/" in setting else "test_accuracy"


def _across(
    runs: list[Run], settings: Sequence[str], domain: str, arm: str, other: str, end: str
) -> list[Claim]:
    """Return the claim on another domain: together as in the papers, or image by image."""
    metric = f"{domain}_accuracy{end}"
    shared = [
        s
        for s in settings
        if (end or "/support/" not in s) and gap(runs, s, arm, other, metric) is not None
    ]
    if not shared:
        return []
    return over_settings(
        runs,
        {s: s.removeprefix("omniglot/") for s in shared},
        arm,
        other,
        f"Trained on Omniglot, {arm} is better on {domain} than {other}, {_JUDGED[end]}",
        metric=metric,
        each=True,
    )


def _text(runs: list[Run], setting: str) -> str:
    """Return a setting's accuracies in a table: arms against domains, both BatchNorm policies."""
    arms = [a for a in (*_ARMS, *at_rates(runs, setting)) if values(runs, setting, a)]
    names = ["test", *(d for d in DOMAINS if level(runs, setting, arms[0], f"{d}_accuracy"))]
    first = (
        "own domain" if _own(setting) else setting.split("/", maxsplit=1)[0].partition("-to-")[2]
    )
    heads = [n if n != "test" else first for n in names]
    parts = [
        f"**{setting}**: accuracy under the transductive policy / by the support set's statistics, %."
    ]
    table = [f"| arm | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for arm in arms:
        cells = []
        for name in names:
            two = [
                plain(level(runs, setting, arm, f"{name}_accuracy{end}"), 1)
                for end in ("", _BY_SUPPORT)
            ]
            cells.append(" / ".join(two))
        table.append(f"| {arm} | {' | '.join(cells)} |")
    shares = _sparsity(runs, setting)
    if shares:
        said = ", ".join(f"{line.y[-1]:.2f}" for line in shares)
        parts.append(f"Learned sparsity by layer, from the input on: {said}.")
    pair = gap(runs, setting, "meta-ticket", "maml", _metric(setting))
    if pair is not None:
        parts.append(f"Meta-ticket minus MAML, {first}: {signed(pair, 1)} points.")
    return "\n\n".join([parts[0], "\n".join(table), *parts[1:]])


def _sparsity(runs: list[Run], setting: str) -> list[Line]:
    """Return the sparsity of each masked layer along training, means over seeds."""
    own = [r for r in _whole(runs, "meta-ticket") if r.setting == setting]
    keys = [k for r in own[:1] for row in r.history[-1:] for k in row if k.startswith("sparsity/")]
    drawn = []
    for number, key in enumerate(keys, 1):
        curves = [{row["step"]: row[key] for row in r.history if key in row} for r in own]
        at = sorted(set.intersection(*(set(c) for c in curves)))
        points = {float(x): estimate(c[x] for c in curves) for x in at}
        drawn.append(line_of(f"layer {number}", points))
    return drawn


def _figures(runs: list[Run], settings: Sequence[str]) -> dict[str, str]:
    figures: dict[str, str] = {}
    shares = [Panel(title=s, lines=drawn) for s in settings if (drawn := _sparsity(runs, s))]
    if shares:
        figures["sparsity"] = lines(shares, x_label="Outer step", y_label="Sparsity")
    panels = [p for s in settings if (p := _domain_panel(runs, s)) is not None]
    if panels:
        figures["domains"] = lines(
            panels, x_label=_domain_label(), y_label="Accuracy (%)", spread="bars"
        )
    if widths := _width_panels(runs, settings):
        figures["width"] = lines(widths, x_label="Width", y_label="Accuracy (%)", spread="bars")
    for setting in settings:
        figures |= rate_figures(runs, setting, DOMAINS)
    matched = [p for s in settings for p in _matched(runs, s)]
    if matched:
        figures["matched"] = lines(
            matched,
            x_label="Accuracy in the own domain along training (%)",
            y_label="Accuracy in the other domain (%)",
        )
    return figures


def _width_panels(runs: list[Run], settings: Sequence[str]) -> list[Panel]:
    """Return the arms by width, for the own domain and for each other, under both policies."""
    sizes = {
        s: float(s.rpartition("=")[2])
        for s in settings
        if s.startswith("omniglot/5way-1shot/transductive/width=")
    }
    panels = []
    for name in ("test", *DOMAINS) if len(sizes) > 1 else ():
        for end in ("", _BY_SUPPORT):
            drawn = []
            for arm in ("untrained", "meta-ticket", "random-mask", "maml"):
                points = {
                    x: own
                    for s, x in sorted(sizes.items(), key=lambda pair: pair[1])
                    if (own := level(runs, s, arm, f"{name}_accuracy{end}")) is not None
                }
                if len(points) > 1:
                    drawn.append(line_of(arm, points))
            if drawn:
                where = "own domain" if name == "test" else name
                panels.append(Panel(title=f"{where}, {_JUDGED[end]}", lines=drawn))
    return panels


def _domain_label() -> str:
    return "0 own domain, " + ", ".join(f"{i} {d}" for i, d in enumerate(DOMAINS, 1))


def _domain_panel(runs: list[Run], setting: str) -> Panel | None:
    """Return accuracies by domain, a line an arm."""
    drawn = []
    for arm in _ARMS:
        points = {}
        for place, name in enumerate(("test", *DOMAINS)):
            end = _BY_SUPPORT if "/support/" in setting else ""
            own = level(runs, setting, arm, f"{name}_accuracy{end}")
            if own is not None:
                points[float(place)] = own
        if len(points) > 1:
            drawn.append(line_of(arm, points))
    return Panel(title=setting, lines=drawn) if drawn else None


def _matched(runs: list[Run], setting: str) -> list[Panel]:
    """Return, for one other domain, its accuracy against that of the own domain along training."""
    panels = []
    for name in ("emnist", "mnist"):
        drawn = []
        for arm in ("untrained", "meta-ticket", "maml", "anil", "boil", "mgaug"):
            own = [r for r in _whole(runs, arm) if r.setting == setting and r.finished]
            curves = [
                {row["step"]: (row["accuracy"], row[f"{name}_accuracy"]) for row in r.history
                 if f"{name}_accuracy" in row} for r in own
            ]  # fmt: skip
            if not curves or not all(curves):
                continue
            at = sorted(set.intersection(*(set(c) for c in curves)))
            drawn.append(
                Line(
                    label=arm,
                    x=[sum(c[s][0] for c in curves) / len(curves) for s in at],
                    y=[sum(c[s][1] for c in curves) / len(curves) for s in at],
                )
            )
        if drawn:
            panels.append(Panel(title=f"{setting}/{name}", lines=drawn))
    return panels
