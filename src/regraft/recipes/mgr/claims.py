"""What the numbers of the recipe `mgr` say: augmentation, consistency, and whether choosing pays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from regraft.recipes.claims import above, difference, over_settings
from regraft.recipes.compare import Runs, differences, gap, level, line_of, plain, signed, verdict
from regraft.recipes.recipe import Findings
from regraft.report import Claim, Line, Panel, Row, Run, estimate, lines

ATTEMPTS = {
    "mgr": "a finder, exact hypergradient, rotating folds",
    "mgr_finite": "the same by finite difference (the paper's approximation)",
    "mgr_80": "the same with a fifth of the labels held out for validation",
    "mgr_oracle": "the same with 1,000 further labels for validation, an upper bound",
    "bank_entropy": "a pool by predictive entropy, no validation",
    "bank_gradient": "a pool by the derivative along the validation gradient",
    "mps_draws": "the same, scores averaged over four draws of the view",
    "mps_pairs_80": "pairs of image and view, the view replayed, a fifth held out",
    "mps_pool": "a pool twice as large, of which an eighth is kept",
    "mps_copies": "two copies of the network, each blind to its fold (cross-fitting)",
    "mps_classes": "an affine finder for each class",
    "mps_batches": "four validation batches a meta step",
    "mps_average": "the Jacobian at a running average of the weights",
    "mps_fisher": "the validation gradient divided by a diagonal Fisher",
    "mps_gda": "a finder for cross-entropy on generated images",
}
"""Ways of choosing what is generated, by arm."""

_OVER = {"mgr_80": "pcr_80", "mps_pairs_80": "pcr_80", "mps_gda": "gda"}
_PRETRAINED = ("fashion_mnist/50/pretrained", "mnist/50/pretrained")
_DRAWN = (
    "gda_naive",
    "gda",
    "gda_strong",
    "pcr",
    "mgr",
    "bank_entropy",
    "real_pcr",
    "pcr_real",
    "gda_real",
)

SMALLEST = ("fashion_mnist/50", "mnist/50")
"""The settings of 50 labels that everything else is a variation of."""
QUALITY = "fashion_mnist/50/generator="
"""Beginning of settings that differ from the first in their generator."""
RATIO = "fashion_mnist/50/ratio="
"""Beginning of settings that differ from the first in the number of generated images a real one."""


def read(runs: list[Run], rows: list[Row]) -> Findings:
    """Return claims, text and figures of a finished recipe."""
    settings = [
        s for s in dict.fromkeys(r.setting for r in rows) if not s.startswith("generators/")
    ]
    if len(settings) < 2:
        text = "One setting and a few seeds prove nothing: the scale cpu asks the question."
        return Findings(claims=[], text=text, figures={})
    curves = _curves(runs, settings)
    whole = [s for s in settings if s in SMALLEST or s.endswith("/pretrained")]
    claims = [claim for setting in whole for claim in _claims(runs, setting)]
    for kind, ends in (("", SMALLEST), (", from a network trained on letters", _PRETRAINED)):
        two = [s for s in ends if s in settings]
        for arm in ("pcr", "mgr") if len(two) > 1 else ():
            paper = f"{arm.upper()} beats the baseline at 50 labels{kind}"
            claims += over_settings(runs, two, arm, "base", paper, each=True, over="sets")
    for name, by_x in curves.items():
        claims += _along(runs, name, by_x)
    text = [t for s in whole for t in _sentences(runs, s)]
    figures = {"gains": _gains(runs, whole)}
    figures |= {name: _drawn(runs, by_x, name) for name, by_x in curves.items()}
    return Findings(claims=claims, text="\n\n".join(text), figures=figures)


def _claims(runs: Runs, setting: str) -> list[Claim]:
    pairs = (
        ("base", "gda_naive", "Naive augmentation (GDA at weight 1) lowers the accuracy", True),
        ("base", "gda", "Augmentation (GDA) lowers the accuracy at a chosen weight, too", False),
        ("pcr", "gda", "Consistency of generated images (PCR) beats GDA", False),
        ("pcr", "base", "PCR beats the baseline", True),
        ("mgr", "base", "MGR beats the baseline", False),
        ("mgr", "pcr", "Choosing latents by meta-learning (MGR) beats uniform ones (PCR)", True),
        ("pcr", "mgr_80", "Our question: labels are worth more for training than for MPS", False),
        ("real_pcr", "pcr", "Our question: consistency of the real images alone beats PCR", False),
        ("gda_real", "real_pcr", "Our question: GDA adds to consistency of real images", False),
        ("bank_entropy", "mgr", "Our question: entropy, the cheap rival, beats MGR", False),
    )
    return [
        claim
        for arm, other, paper, levels in pairs
        for claim in difference(runs, setting, arm, other, paper, levels=levels)
    ]


def _sentences(runs: Runs, setting: str) -> list[str]:
    base = level(runs, setting, "base")
    if base is None:
        return []
    arms = dict.fromkeys(r.arm for r in runs if r.setting == setting)
    parts = [f"**{setting}**, {base.n} seeds, baseline {plain(base)}%. Gains in points, same seed:"]
    over_base = [
        f"{arm} {signed(g)}"
        for arm in arms
        if arm not in (*ATTEMPTS, "base", "cas") and (g := gap(runs, setting, arm, "base"))
    ]
    parts.append("; ".join(over_base) + ".")
    attempts = [
        f"- {what} (`{arm}` minus `{other}`): {signed(g)}, {verdict(g)}"
        for arm, what in ATTEMPTS.items()
        if (other := _OVER.get(arm, "pcr")) and (g := gap(runs, setting, arm, other)) is not None
    ]
    text = " ".join(parts)
    if len(attempts) < 3:
        return [text, *([" ".join(a[2:] for a in attempts) + "."] if attempts else [])]
    return [
        text,
        f"What was tried to make choosing pay, at {setting}, against uniform latents:",
        "\n".join(attempts),
    ]


def _gains(runs: list[Run], settings: list[str]) -> str:
    """Draw the paired gain over the baseline of the arms that matter most."""
    panels = []
    for setting in settings:
        points = {a: g for a in _DRAWN if (g := gap(runs, setting, a, "base")) is not None}
        if len(points) > 2:
            drawn = [line_of(a, {float(i): g}) for i, (a, g) in enumerate(points.items())]
            panels.append(Panel(title=setting, lines=drawn))
    y = "points over the baseline"
    return lines(panels, x_label="arm", y_label=y, spread="bars", joined=False, order=_DRAWN)


def _curves(runs: Runs, settings: Iterable[str]) -> dict[str, dict[float, str]]:
    """Return the settings of each curve by x: labels, the generator's score, or generated a real image."""
    settings = list(settings)
    first = SMALLEST[0]
    quality = [s for s in settings if s == first or s.startswith(QUALITY)]
    scores = {s: cas.mean for s in quality if (cas := level(runs, s, "cas")) is not None}
    sizes = [s for s in settings if s.partition("/")[0] == first.partition("/")[0]]
    curves = {
        "labels": {float(n): s for s in sizes if (n := s.partition("/")[2]).isdigit()},
        "score": {round(score, 1): s for s, score in scores.items()},
        "ratio": {float(s.removeprefix(RATIO)): s for s in settings if s.startswith(RATIO)},
    }
    if curves["ratio"] and first in settings:
        curves["ratio"][1.0] = first
    return {k: dict(sorted(by_x.items())) for k, by_x in curves.items() if len(by_x) > 1}


_ALONG = {
    "labels": (("pcr", "mgr"), False, "gains more the fewer labels there are"),
    "score": (("gda_naive", "pcr"), True, "gains more the better the generator is (CAS)"),
    "ratio": (
        ("gda_naive", "pcr"),
        True,
        "gains more with more generated images for each real one",
    ),
}
"""By curve: arms, whether their gain is said to rise with x, and what is claimed."""
_CALLED = {"gda_naive": "Naive GDA"}


def _along(runs: Runs, name: str, by_x: Mapping[float, str]) -> list[Claim]:
    """Return claims on a curve: the gain at one end minus that at the other, by seed; GDA on the whole."""
    arms, rises, said = _ALONG[name]
    more, less = sorted((min(by_x), max(by_x)), reverse=rises)
    claims: list[Claim] = []
    for arm in arms:
        one, two = (differences(runs, by_x[x], arm, "base") for x in (more, less))
        moved = estimate(one[seed] - two[seed] for seed in sorted(one.keys() & two.keys()))
        note = f"{arm} minus base at {more:g} minus that at {less:g}: {signed(moved)} points, "
        note += f"{verdict(moved)}, n = {moved.n} seeds."
        evidence, paper = [by_x[more], by_x[less]], f"{_CALLED.get(arm, arm.upper())} {said}"
        claims.append(Claim(paper=paper, held=above()(moved), evidence=evidence, note=note))
    short = {s: f"{x:g}" for x, s in by_x.items()}
    paper = f"Naive augmentation (GDA) lowers the accuracy, along the curve over {name}"
    return claims + over_settings(runs, short, "base", "gda_naive", paper, over="its points")


def _drawn(runs: list[Run], by_x: Mapping[float, str], name: str) -> str:
    shown: list[Line] = []
    for arm in ("gda_naive", "gda", "pcr", "mgr", "real_pcr", "gda_real"):
        gains = {x: g for x, s in by_x.items() if (g := gap(runs, s, arm, "base")) is not None}
        if len(gains) > 1:
            shown.append(line_of(arm, gains))
    x = {"score": "score of the generator (CAS, %)", "ratio": "generated images a real one"}
    panel = Panel(
        title=SMALLEST[0].partition("/")[0] if name == "labels" else SMALLEST[0], lines=shown
    )
    return lines(
        [panel],
        x_label=x.get(name, name),
        y_label="points over the baseline",
        log_x=name != "score",
        x_text=lambda value: f"{value:g}",
    )
