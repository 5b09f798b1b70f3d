"""What the numbers of the recipe `merging` say about the paper's claims, and where they do not hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from regraft.recipes.compare import gap, mean_line, signed, values, verdict
from regraft.recipes.recipe import Findings
from regraft.report import Claim, Row, Run, estimate, paired_difference
from regraft.report.figure import Line, Panel, lines

_FULL_GAIN = 28.0  # points over weight matching without data, with all data
_CONDENSED_GAIN = 25.0  # and with ten condensed images of each class
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
    text = "\n\n".join(part for part in (_condensing(runs), _NOTES) if part)
    return Findings(claims=claims, text=text, figures=_figures(runs, settings, angles))


def by_angle(settings: Iterable[str]) -> dict[float, str]:
    """Return the settings of a set with itself turned, by angle."""
    found = {}
    for setting in settings:
        if _TURNED in setting and not setting.startswith("parents/"):
            found[float(setting.rpartition(_TURNED)[2])] = setting
    return dict(sorted(found.items()))


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
    claims = []

    def claim(paper: str, arm: str, other: str, least: float = 0.0, more: str = "") -> None:
        found = gap(runs, setting, arm, other)
        if found is None:
            return
        held = found.low is not None and found.low > 0 and found.mean >= least
        note = f"{arm} minus {other}: {signed(found)} points, {verdict(found)}"
        if least:
            note += f"; the published gain is {least:g}"
        claims.append(
            Claim(
                paper=f"{paper} ({setting})",
                held=held,
                evidence=[setting],
                note=f"{note}. {more}".strip(),
            )
        )

    base = "weight_matching"
    claim("Weight matching without data merges better than the plain average", base, "average")
    claim(
        "Straight-through matching with all data gains 28 points over weight matching without data",
        "ste_full",
        base,
        _FULL_GAIN,
    )
    claim(
        "With ten condensed images of each class the gain is 25 points",
        "ste_condensed",
        base,
        _CONDENSED_GAIN,
    )
    for kind in ("random", "herding"):
        claim(
            f"Our control: a {kind} choice of as few real images gains as well", f"ste_{kind}", base
        )
    claim(
        "Our control: condensed images are better for matching than a random choice",
        "ste_condensed",
        "ste_random",
        more="The paper's figure shows both about equal.",
    )
    for kind in ("condensed", "random", "herding"):
        claim(
            f"Merging with a small set ({kind}) beats training from scratch on it",
            f"ste_{kind}",
            f"scratch_{kind}",
        )
    claim("One merged network beats the ensemble of both", "ste_full", "ensemble")
    claim("Our control: labels beat activations", "ste_full", "activation_matching")
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
            held=weights.high is not None and weights.high < 0,
            evidence=evidence,
            note=f"Slope over 90 degrees: {signed(weights)} points; by angle {each['weight_matching']}.",
        ),
        Claim(
            paper="Straight-through matching with data falls less",
            held=better.low is not None and better.low > 0,
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
            found = gap(runs, setting, f"{arm}{end}", f"average{end}", "accuracy_barrier")
            by_loss = gap(runs, setting, f"{arm}{end}", f"average{end}", "loss_barrier")
            if found is None or by_loss is None:
                continue
            own, plain = (
                estimate(values(runs, setting, f"{name}{end}", "accuracy_barrier").values()).mean
                for name in (arm, "average")
            )
            note = (
                f"Barrier of accuracy {own:.1f} points aligned, {plain:.1f} unaligned, difference "
                f"{signed(found)}; of the loss {signed(by_loss)} nats."
            )
            held = found.high is not None and found.high < 0
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
    for setting in settings:
        drawn = _paths([r for r in runs if r.setting == setting])
        if drawn and setting not in angles.values():
            several = any(not key for key in drawn) and len(drawn) > 1
            names = {"": "mean of both test sets", "_a": "test set of A", "_b": "test set of B"}
            panels = [
                Panel(title=f"{setting}: {names[key]}" if several else setting, lines=found)
                for key, found in drawn.items()
            ]
            kind = "same-data" if setting.endswith("/same-data") else "sets"
            name = f"path-{kind}" if f"path-{kind}" not in figures else f"path-{len(figures)}"
            figures[name] = lines(
                panels, x_label="λ, from A to B", y_label="Test accuracy (%)", columns=3
            )
    if len(angles) > 1:
        figures["angles"] = lines(
            [Panel(title=f"{next(iter(angles.values())).split('/')[0]}, turned", lines=found)]
            if (found := _over_angles(runs, angles))
            else [],
            x_label="Angle between the data sets (degrees)",
            y_label="Test accuracy, mean of both (%)",
            spread="bars",
        )
    return figures


def _paths(runs: list[Run]) -> dict[str, list[Line]]:
    """Return for the mean ("") and for each set the accuracies along the path, by arm."""
    drawn: dict[str, list[Line]] = {}
    arms = dict.fromkeys(r.arm for r in runs)
    for key in ("", "_a", "_b"):
        for arm in arms:
            curves = [
                {row["at"]: row[f"accuracy{key}"] for row in r.history if _on_path(row, key)}
                for r in runs
                if r.arm == arm and r.finished
            ]
            line = mean_line(arm, [c for c in curves if c])
            if line is not None:
                drawn.setdefault(key, []).append(line)
    return drawn


def _on_path(row: Mapping[str, object], key: str) -> bool:
    return row["split"] == "path" and f"accuracy{key}" in row


def _over_angles(runs: list[Run], angles: dict[float, str]) -> list[Line]:
    found = []
    for arm in _CONTROLS:
        points = {a: values(runs, s, arm) for a, s in angles.items()}
        seeds = sorted(set.intersection(*(set(p) for p in points.values())))
        line = mean_line(arm, [{a: p[seed] for a, p in points.items()} for seed in seeds])
        if line is not None:
            found.append(line)
    return found


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
    each = ", ".join(f"{estimate(found).mean:.0f} s ({name})" for name, found in seconds.items())
    return f"Condensing a set took {each}; the times in the tables do not hold it."


_NOTES = (
    "Accuracies are means over both test sets, by one network whose ten outputs both sets share: "
    "class i of one set and class i of the other are one output, as in the paper, so no network has "
    "to know which set an image is from. Of merged networks test accuracy is that in the middle, "
    "path accuracy the mean over the path from A to aligned B (25 networks; 11 of the ResNets). At "
    "the scale cpu the path is measured on a part of the test images, the middle on all. parent_a and "
    "parent_b are the networks merged, measured on both sets; the settings `parents/...` hold "
    "their own accuracies, each on its own set alone."
    "\n\n"
    "ste_full learns from all training images and compares its candidates on held-out ones; on small "
    "sets candidates are compared on the small set itself, and no other image is used. Every small "
    "set has ten images of each class from each data set (50 of class-split CIFAR-10). At the scale "
    "cpu, learning rate and sweeps of STE were looked at for all data and for random images, on "
    "validation images with a seed that is not reported (`benchmarks/choose_merging.py`); the other "
    "small sets share those of random images. Training from scratch was looked at for condensed and "
    "random images: 0.03 is learnt with both, while 0.1, the paper's, ends near chance on condensed "
    "ones here, whose pixels leave [0, 1]. The test images chose nothing. activation_matching uses "
    "training images without labels, and so do networks with statistics taken anew or REPAIR."
)
