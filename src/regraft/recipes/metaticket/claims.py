"""What the numbers of the recipe `metaticket` say: in its own domain, across domains, against controls."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.recipes.claims import difference, over_settings
from regraft.recipes.compare import gap, level, line_of, plain, signed, values
from regraft.recipes.recipe import Findings
from regraft.recipes.selection import SELECTION
from regraft.report import Claim, Line, Panel, Row, Run, estimate, lines

DOMAINS = ("emnist", "mnist", "fashion_mnist", "digits")
_ARMS = ("untrained", "meta-ticket", "random-mask", "maml", "anil", "boil", "shuffled-mask")
_BY_SUPPORT = "_by_support"


def read(runs: list[Run], rows: list[Row]) -> Findings:
    """Return claims, text and figures of a finished recipe."""
    del rows
    settings = [s for s in dict.fromkeys(r.setting for r in runs) if not s.startswith(SELECTION)]
    claims: list[Claim] = []
    for setting in settings:
        metric = _metric(setting)
        for control in ("random-mask", "shuffled-mask", "untrained"):
            claims += difference(
                runs,
                setting,
                "meta-ticket",
                control,
                f"A meta-learned mask is better than the control {control}",
                metric=metric,
                levels=True,
            )
        claims += difference(
            runs,
            setting,
            "meta-ticket",
            "maml",
            "Meta-ticket is better than MAML on new classes of its own domain, at equal steps",
            metric=metric,
            levels=True,
        )
    pairs = (("meta-ticket", "untrained"), ("maml", "untrained"), ("meta-ticket", "maml"))
    for domain in DOMAINS:
        for arm, other in pairs:
            for end in ("", _BY_SUPPORT):
                claims += _across(runs, settings, domain, arm, other, end)
    text = "\n\n".join(part for s in settings if (part := _text(runs, s)))
    return Findings(claims=claims, text=text, figures=_figures(runs, settings))


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
    how = "judged image by image" if end else "judged with transductive BatchNorm"
    return over_settings(
        runs,
        {s: s.removeprefix("omniglot/") for s in shared},
        arm,
        other,
        f"Trained on Omniglot, {arm} is better on {domain} than {other}, {how}",
        metric=metric,
        each=True,
    )


def _text(runs: list[Run], setting: str) -> str:
    """Return a setting's accuracies in a table: arms against domains, both BatchNorm policies."""
    arms = [a for a in _ARMS if values(runs, setting, a)]
    names = ["test", *(d for d in DOMAINS if level(runs, setting, arms[0], f"{d}_accuracy"))]
    heads = [n if n != "test" else "own domain" for n in names]
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
        parts.append(f"Meta-ticket minus MAML in its own domain: {signed(pair, 1)} points.")
    return "\n\n".join([parts[0], "\n".join(table), *parts[1:]])


def _sparsity(runs: list[Run], setting: str) -> list[Line]:
    """Return the sparsity of each masked layer along training, means over seeds."""
    own = [r for r in runs if (r.setting, r.arm) == (setting, "meta-ticket")]
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
    matched = [p for s in settings for p in _matched(runs, s)]
    if matched:
        figures["matched"] = lines(
            matched,
            x_label="Accuracy in the own domain along training (%)",
            y_label="Accuracy in the other domain (%)",
        )
    return figures


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
        for arm in ("untrained", "meta-ticket", "maml", "anil", "boil"):
            own = [r for r in runs if (r.setting, r.arm) == (setting, arm) and r.finished]
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
