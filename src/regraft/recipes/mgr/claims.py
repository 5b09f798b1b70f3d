"""What the numbers of the recipe `mgr` say: augmentation, consistency, and whether choosing pays."""

from __future__ import annotations

from regraft.recipes.claims import difference, over_settings
from regraft.recipes.compare import Runs, gap, level, line_of, plain, signed, verdict
from regraft.recipes.recipe import Findings
from regraft.report import Claim, Estimate, Line, Panel, Row, Run, lines

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
_DRAWN = ("gda", "gda_strong", "pcr", "mgr", "bank_entropy", "real_pcr", "pcr_real", "gda_real")
_SMALLEST = ("fashion_mnist/50", "mnist/50")


def read(runs: list[Run], rows: list[Row]) -> Findings:
    """Return claims, text and figures of a finished recipe."""
    settings = [
        s for s in dict.fromkeys(r.setting for r in rows) if not s.startswith("generators/")
    ]
    if len(settings) < 2:
        text = "One setting and a few seeds prove nothing: the scale cpu asks the question."
        return Findings(claims=[], text=text, figures={})
    claims: list[Claim] = []
    for setting in settings:
        claims += _claims(runs, setting)
    two = [s for s in _SMALLEST if s in settings]
    if len(two) > 1:
        claims += over_settings(
            runs, two, "pcr", "base", "PCR beats the baseline at 50 labels", each=True, over="sets"
        )
        claims += over_settings(
            runs, two, "mgr", "base", "MGR beats the baseline at 50 labels", each=True, over="sets"
        )
    sentences = [t for s in settings for t in _sentences(runs, s)]
    figures = {"gains": _gains(runs, settings)}
    for name in ("fashion_mnist", "fashion_mnist/50/generator", "fashion_mnist/50/ratio"):
        numbered = _by_number(settings, name)
        if len(numbered) > 1:
            short = {"fashion_mnist": "labels"}.get(name, name.rpartition("/")[2])
            figures[short] = _curve(runs, numbered, short)
    return Findings(claims=claims, text="\n\n".join(sentences), figures=figures)


def _claims(runs: Runs, setting: str) -> list[Claim]:
    pairs = (
        (
            "base",
            "gda",
            "Adding generated images to the cross-entropy (GDA) lowers the accuracy",
            False,
        ),
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
        if arm not in ATTEMPTS and arm != "base" and (g := gap(runs, setting, arm, "base"))
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


def _by_number(settings: list[str], name: str) -> dict[float, str]:
    """Return the settings that end in `name=NUMBER` or `name/NUMBER`, by the number."""
    numbers: dict[float, str] = {}
    for setting in settings:
        head, _, tail = setting.replace("=", "/").rpartition("/")
        if head == name.replace("=", "/") and tail.replace(".", "", 1).isdigit():
            numbers[float(tail)] = setting
    return dict(sorted(numbers.items()))


def _curve(runs: list[Run], settings: dict[float, str], name: str) -> str:
    drawn: list[Line] = []
    for arm in ("gda", "pcr", "mgr", "real_pcr", "gda_real"):
        points: dict[float, Estimate] = {}
        for x, setting in settings.items():
            estimate = gap(runs, setting, arm, "base")
            if estimate is not None:
                points[x] = estimate
        if len(points) > 1:
            drawn.append(line_of(arm, points))
    panel = Panel(title=next(iter(settings.values())).partition("/")[0], lines=drawn)
    x, y = name, "points over the baseline"
    return lines([panel], x_label=x, y_label=y, log_x=True)
