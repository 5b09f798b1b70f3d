"""What the numbers of the recipe `merging` say about the paper's claims, and where they do not hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from regraft.recipes.claims import above, below, difference
from regraft.recipes.compare import gap, mean_line, signed, values
from regraft.recipes.curves import history_lines
from regraft.recipes.notes import read_data
from regraft.recipes.recipe import Findings
from regraft.report import Claim, Row, Run, estimate, paired_difference
from regraft.report.figure import Line, Panel, lines

_TURNED = "/rotated="
_CONTROLS = ("average", "weight_matching", "ste_full")
_ENDS = ("parent_a", "parent_b")


def read(runs: list[Run], rows: list[Row]) -> Findings:
    """Return claims, text and figures of a finished recipe."""
    settings = list(dict.fromkeys(r.setting for r in rows))
    claims: list[Claim] = []
    for setting in settings:
        arms = {r.arm for r in rows if r.setting == setting}
        if "ste_random" in arms:
            claims += _against_no_data(runs, setting)
    angles = by_angle(settings)
    if len(angles) > 1:
        claims += _by_angle(runs, angles)
    for setting in settings:
        if setting.endswith("/same-data"):
            claims += _same_data(runs, setting)
    figures = _figures(runs, settings, angles)
    return Findings(claims=claims, text=_condensing(runs), figures=figures)


def by_angle(settings: Iterable[str]) -> dict[float, str]:
    """Return the settings of a set with itself turned, by angle."""
    turned = [s for s in settings if _TURNED in s and not s.startswith("parents/")]
    return dict(sorted((float(s.rpartition(_TURNED)[2]), s) for s in turned))


def slopes(points: Mapping[float, Mapping[int, float]]) -> dict[int, float]:
    """Return for each seed that all angles have the least-squares slope, in points for 90 degrees."""
    seeds = set.intersection(*(set(p) for p in points.values()))
    middle = sum(points) / len(points)
    spread = sum((angle - middle) ** 2 for angle in points)
    return {
        seed: 90 * sum((angle - middle) * p[seed] for angle, p in points.items()) / spread
        for seed in sorted(seeds)
    }


def _against_no_data(runs: list[Run], setting: str) -> list[Claim]:
    """Read one pair of sets with all arms."""
    data = read_data(__package__ or "", "pairs.toml")
    published = data["published"] if setting.startswith("mnist+fashion_mnist/") else {}
    claims: list[Claim] = []
    for pair in data["pairs"]:
        figures = {n: published[n] for n in (pair["arm"], pair["other"]) if n in published}
        claims += difference(runs, setting, **pair, absolute=figures)
    return claims


def _by_angle(runs: list[Run], angles: dict[float, str]) -> list[Claim]:
    """Read the accuracies of a set with itself turned, over the angle."""
    at = {arm: {a: values(runs, s, arm) for a, s in angles.items()} for arm in _CONTROLS}
    if not all(at["weight_matching"].values()) or not all(at["ste_full"].values()):
        return []
    fall, held_up = slopes(at["weight_matching"]), slopes(at["ste_full"])
    evidence = list(angles.values())
    weights = estimate(fall.values())
    better = paired_difference(held_up, fall)
    each = {
        arm: ", ".join(f"{a:g}: {estimate(v.values()).mean:.1f}" for a, v in p.items())
        for arm, p in at.items()
        if all(p.values())
    }
    return [
        Claim(
            paper="Accuracy of weight matching falls as the data sets diverge",
            held=below()(weights),
            evidence=evidence,
            note=f"Slope over 90 degrees: {signed(weights)} points; by angle {each['weight_matching']}.",
        ),
        Claim(
            paper="Straight-through matching with data falls less",
            held=above()(better),
            evidence=evidence,
            note=(
                f"Its slope minus that of weight matching: {signed(better)} points; by angle "
                f"{each['ste_full']}."
            ),
        ),
    ]


def _same_data(runs: list[Run], setting: str) -> list[Claim]:
    """Read the barriers between two networks with BatchNorm on the same data."""
    claims = []
    for end, words in (
        ("", "with statistics averaged like weights"),
        ("_reset", "with BatchNorm statistics taken anew"),
        ("_repair", "with REPAIR"),
    ):
        for arm in ("weight_matching", "activation_matching"):
            by_accuracy = gap(runs, setting, f"{arm}{end}", f"average{end}", "accuracy_barrier")
            by_loss = gap(runs, setting, f"{arm}{end}", f"average{end}", "loss_barrier")
            if by_accuracy is None or by_loss is None:
                continue
            own, plain = (
                estimate(values(runs, setting, f"{name}{end}", "accuracy_barrier").values()).mean
                for name in (arm, "average")
            )
            note = (
                f"Barrier of accuracy {own:.1f} points aligned, {plain:.1f} unaligned, difference "
                f"{signed(by_accuracy)}; of the loss {signed(by_loss)} nats."
            )
            held = below()(by_accuracy)
            if not end and not held:
                note += (
                    " Statistics of the parents fit no merged network, which can be at chance however "
                    "it was aligned."
                )
            claims.append(
                Claim(
                    paper=(
                        f"Networks of the same data aligned by {arm.replace('_', ' ')} have a lower "
                        f"barrier than unaligned ones, {words} ({setting})"
                    ),
                    held=held,
                    evidence=[setting],
                    note=note,
                )
            )
    return claims


def _figures(runs: list[Run], settings: Sequence[str], angles: dict[float, str]) -> dict[str, str]:
    figures = {}
    finished = [r for r in runs if r.finished]
    for setting in settings:
        paths = {
            key: history_lines(finished, setting, split="path", x="at", y=f"accuracy{key}")
            for key in ("", "_a", "_b")
        }
        drawn = {key: over for key, over in paths.items() if over}
        if drawn and setting not in angles.values():
            several = any(not key for key in drawn) and len(drawn) > 1
            names = {"": "mean of both test sets", "_a": "test set of A", "_b": "test set of B"}
            panels = [
                Panel(title=f"{setting}: {names[key]}" if several else setting, lines=over)
                for key, over in drawn.items()
            ]
            kind = "same-data" if setting.endswith("/same-data") else "sets"
            name = f"path-{kind}" if f"path-{kind}" not in figures else f"path-{len(figures)}"
            figures[name] = lines(
                panels, x_label="λ, from A to B", y_label="Test accuracy (%)", columns=3
            )
    if len(angles) > 1:
        figures["angles"] = lines(
            [Panel(title=f"{next(iter(angles.values())).split('/')[0]}, turned", lines=over)]
            if (over := _over_angles(runs, angles))
            else [],
            x_label="Angle between the data sets (degrees)",
            y_label="Test accuracy, mean of both (%)",
            spread="bars",
        )
    return figures


def _over_angles(runs: list[Run], angles: dict[float, str]) -> list[Line]:
    drawn = []
    for arm in _CONTROLS:
        points = {a: values(runs, s, arm) for a, s in angles.items()}
        seeds = sorted(set.intersection(*(set(p) for p in points.values())))
        line = mean_line(arm, [{a: p[seed] for a, p in points.items()} for seed in seeds])
        if line is not None:
            drawn.append(line)
    return drawn


def _condensing(runs: list[Run]) -> str:
    """Say what the condensed sets cost, which no row of the tables holds."""
    seconds: dict[str, list[float]] = {}
    for run in runs:
        if run.setting.startswith("surrogates/") and run.result and run.result.seconds:
            seconds.setdefault(run.setting.removeprefix("surrogates/"), []).append(
                run.result.seconds
            )
    if not seconds:
        return ""
    said = ", ".join(f"{estimate(each).mean:.0f} s ({name})" for name, each in seconds.items())
    return f"Condensing a set took {said}; the times in the tables do not hold it."
