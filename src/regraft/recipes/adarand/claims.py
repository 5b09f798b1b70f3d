"""What the numbers of the recipe `adarand` say: where AdaRand is better, and where it is not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from regraft.jobs.finetune.analysis import QUANTITIES, SPLIT
from regraft.recipes.compare import better, gap, line_of, signed, values, verdict, worse
from regraft.recipes.recipe import Findings
from regraft.report import Claim, Panel, Row, Run, efficiency, estimate, lines

from .arms import ARMS, Budget

_SIZE = re.compile(r"/(shots|share)=([\d.]+)$")
_CONTROLS = ("scratch", "plain")
_VARIANTS = "adarand"
_DRAWN = ("scratch", "plain", "adarand", "randreg_class", "randreg_source", "feature_norm")


def read(runs: list[Run], rows: list[Row]) -> Findings:
    """Return claims, text and figures of a finished recipe."""
    runs = [r for r in runs if r.finished]
    pairs = by_pair(r.setting for r in rows if r.metric == "test_accuracy")
    claims = _ordering(runs, pairs)
    for sizes in pairs.values():
        claims += _smallest(runs, sizes)
    for pair, sizes in pairs.items():
        claims += _prior(runs, pair, sizes)
    claims += _features(runs, pairs)
    text = [*_sentences(runs, pairs), _diverged(runs), _chosen(runs), _NOTES]
    figures = _figures(runs, rows, pairs)
    return Findings(claims=claims, text="\n\n".join(t for t in text if t), figures=figures)


def by_pair(settings: Iterable[str]) -> dict[str, dict[float, str]]:
    """Return settings by what they transfer from and to, and by size, the smallest first."""
    found: dict[str, dict[float, str]] = {}
    for setting in dict.fromkeys(settings):
        size = _SIZE.search(setting)
        if size and "-to-" in setting and not setting.startswith("selection/"):
            found.setdefault(setting[: size.start()], {})[float(size[2])] = setting
    return {pair: dict(sorted(sizes.items())) for pair, sizes in found.items()}


def rivals(runs: Iterable[Run], setting: str) -> list[str]:
    """Return the arms of a setting that AdaRand competes with: not controls, not its variants."""
    arms = dict.fromkeys(r.arm for r in runs if r.setting == setting)
    return [arm for arm in arms if arm not in _CONTROLS and not arm.startswith(_VARIANTS)]


def _ordering(runs: list[Run], pairs: Mapping[str, Mapping[float, str]]) -> list[Claim]:
    """AdaRand over plain fine-tuning over scratch, at the smallest size of every pair and overall."""
    claims, held, known = [], [], []
    for sizes in pairs.values():
        setting = next(iter(sizes.values()))
        over_plain = gap(runs, setting, "adarand", "plain")
        over_scratch = gap(runs, setting, "plain", "scratch")
        if over_plain is None:
            continue
        note = f"AdaRand minus plain: {signed(over_plain)}"
        holds = better(over_plain)
        words = "AdaRand beats plain fine-tuning"
        if over_scratch is not None:
            words += ", and that training from scratch"
            note += f"; plain minus scratch: {signed(over_scratch)}"
            holds = holds and better(over_scratch)
            known.append(setting)
            held += [setting] if holds else []
        claims.append(
            Claim(paper=f"{words} ({setting})", held=holds, evidence=[setting], note=f"{note}.")
        )
    if len(known) > 1:
        claims.insert(
            0,
            Claim(
                paper="AdaRand > plain fine-tuning > scratch at the smallest size of two pairs or more",
                held=len(held) > 1,
                evidence=known,
                note=f"Held at {len(held)} of {len(known)}: {', '.join(held) or 'none'}.",
            ),
        )
    return claims


def _smallest(runs: list[Run], sizes: Mapping[float, str]) -> list[Claim]:
    """AdaRand against every rival at once, where all of them ran."""
    claims = []
    for setting in sizes.values():
        against = {arm: gap(runs, setting, "adarand", arm) for arm in rivals(runs, setting)}
        known = {arm: found for arm, found in against.items() if found is not None}
        if len(known) < 6:
            continue
        below = [f"{arm} ({signed(g)})" for arm, g in known.items() if worse(g)]
        level = [f"{arm} ({signed(g)})" for arm, g in known.items() if not (better(g) or worse(g))]
        note = f"Better than {sum(map(better, known.values()))} of {len(known)}."
        if level:
            note += f" Undecided, AdaRand minus rival: {'; '.join(level)}."
        if below:
            note += f" Worse than: {'; '.join(below)}."
        claims.append(
            Claim(
                paper=f"AdaRand beats every rival ({setting})",
                held=all(map(better, known.values())),
                evidence=[setting],
                note=note,
            )
        )
    return claims


def _prior(runs: list[Run], pair: str, sizes: Mapping[float, str]) -> list[Claim]:
    """Whether means that adapt are better than means that stand still, at every size."""
    found = {n: gap(runs, s, "adarand", "randreg_class") for n, s in sizes.items()}
    known = {n: g for n, g in found.items() if g is not None}
    if not known:
        return []
    each = "; ".join(
        f"{_size(n)}: {signed(g)}, {verdict(g, 'better', 'worse')}" for n, g in known.items()
    )
    return [
        Claim(
            paper=f"Adapting the class means beats the frozen class prior at every size ({pair})",
            held=all(map(better, known.values())),
            evidence=[sizes[n] for n in known],
            note=f"AdaRand minus randreg_class, by {_unit(sizes)}: {each}.",
        )
    ]


def _features(runs: list[Run], pairs: Mapping[str, Mapping[float, str]]) -> list[Claim]:
    """The paper's analysis, from the features at the end of training."""
    claims = []
    for sizes in pairs.values():
        for setting in sizes.values():
            informed = gap(runs, setting, "adarand", "plain", "mutual_information")
            if informed is not None:
                claims.append(
                    Claim(
                        paper=f"AdaRand raises the mutual information of features and class ({setting})",
                        held=better(informed),
                        evidence=[setting],
                        note=f"AdaRand minus plain: {signed(informed)} nats.",
                    )
                )
            collapsed = gap(runs, setting, "randreg_uniform", "plain", "feature_norm")
            kept = gap(runs, setting, "adarand", "randreg_uniform", "feature_norm")
            if collapsed is not None and kept is not None:
                claims.append(
                    Claim(
                        paper=f"A uniform prior shrinks features, and AdaRand less ({setting})",
                        held=worse(collapsed) and better(kept),
                        evidence=[setting],
                        note=(
                            f"Norm: randreg_uniform minus plain {signed(collapsed)}, AdaRand minus "
                            f"randreg_uniform {signed(kept)}."
                        ),
                    )
                )
    return claims


def _sentences(runs: list[Run], pairs: Mapping[str, Mapping[float, str]]) -> list[str]:
    """Say for each pair from which size on AdaRand no longer beats what."""
    said = []
    for pair, sizes in pairs.items():
        parts = []
        for other in ("plain", "randreg_class", "randreg_source", "feature_norm"):
            gaps = {n: gap(runs, s, "adarand", other) for n, s in sizes.items()}
            known = {n: g for n, g in gaps.items() if g is not None}
            if known:
                parts.append(f"{other}, {lasts([(n, better(g)) for n, g in known.items()], sizes)}")
        best = _best(runs, sizes)
        if parts:
            said.append(f"{pair}: AdaRand beats {'; '.join(parts)}. {best}".strip())
    return said


def lasts(shown: Sequence[tuple[float, bool]], sizes: Mapping[float, str]) -> str:
    """Return in words at which sizes, given in rising order, something was shown."""
    unit = _unit(sizes)
    if all(held for _, held in shown):
        return f"at every size measured ({', '.join(_size(n) for n, _ in shown)} {unit})"
    if not any(held for _, held in shown):
        return f"at no size measured ({', '.join(_size(n) for n, _ in shown)} {unit})"
    first = next(i for i, (_, held) in enumerate(shown) if not held)
    if first and not any(held for _, held in shown[first:]):
        return f"up to {_size(shown[first - 1][0])} {unit}, not from {_size(shown[first][0])} on"
    return f"at {', '.join(_size(n) for n, held in shown if held)} {unit} only"


def _best(runs: list[Run], sizes: Mapping[float, str]) -> str:
    """Name the arm with the highest mean at each size."""
    tops = []
    for n, setting in sizes.items():
        arms = dict.fromkeys(r.arm for r in runs if r.setting == setting)
        means = {a: estimate(v.values()).mean for a in arms if (v := values(runs, setting, a))}
        if means:
            top = max(means, key=means.__getitem__)
            tops.append(f"{_size(n)}: {top} {means[top]:.1f}")
    return f"Highest mean by size: {', '.join(tops)}." if tops else ""


def _chosen(runs: list[Run]) -> str:
    """Say what the selection chose, which no table holds."""
    by_setting: dict[str, dict[str, str]] = {}
    seconds = 0.0
    for run in runs:
        if run.result is None:
            continue
        if run.setting.startswith("selection/"):
            seconds += run.result.seconds or 0.0
        elif run.arm in ARMS and "lr" in run.result.metrics:
            by_setting.setdefault(run.setting, {})[run.arm] = _setting(run)
    if not by_setting or not seconds:
        return ""
    each = "\n\n".join(
        f"Chosen for {setting}: {'; '.join(f'{arm} {of}' for arm, of in found.items())}."
        for setting, found in by_setting.items()
    )
    return (
        f"Learning rate, weight where there is one, and AdaRand's rate for its means, that the selection "
        f"chose ({seconds:.0f} seconds of training in all); + marks the largest weight that was tried, - "
        f"the smallest:\n\n{each}"
    )


def _setting(run: Run) -> str:
    """Write learning rate, weight and the rate of means that a run had."""
    found = run.result.metrics if run.result is not None else {}
    text = f"{found['lr']:g}"
    if "weight" in found:
        weights = ARMS[run.arm].weights
        weight = found["weight"]
        edge = "+" if weight == max(weights) else "-" if weight == min(weights) else ""
        text += f", {weight:g}{edge}"
    return text + (f", {found['prior_lr']:g}" if "prior_lr" in found else "")


def _diverged(runs: list[Run]) -> str:
    """Name the runs that diverged with what was chosen for them."""
    found = [r for r in runs if r.result is not None and "diverged" in r.result.metrics]
    if not found:
        return ""
    each = ", ".join(f"{r.setting} {r.arm} seed {r.seed}" for r in found)
    return f"Diverged, and counted with the accuracy of guessing: {each}."


def _figures(
    runs: list[Run], rows: list[Row], pairs: Mapping[str, Mapping[float, str]]
) -> dict[str, str]:
    figures = {}
    curves = [
        r
        for r in rows
        if r.metric == "test_accuracy"
        and r.arm in _DRAWN
        and any(len(s) > 1 and r.setting in s.values() for s in pairs.values())
    ]
    if curves:
        along = "share" if "/share=" in curves[0].setting else "shots"
        figures["data-reduction"] = efficiency(
            curves, along, along=along, x_label=_unit({0.0: curves[0].setting}).capitalize()
        )
        figures["gain-over-plain"] = lines(
            _gains(runs, pairs),
            x_label=_unit({0.0: curves[0].setting}).capitalize(),
            y_label="Test accuracy over plain (points)",
            spread="bars",
            log_x=True,
            x_text="{:g}".format,
        )
    for quantity in QUANTITIES:
        panels = _along_training(runs, pairs, quantity)
        if panels:
            words = {"feature_norm": "Feature norm", "entropy": "Entropy estimate (nats)"}
            figures[quantity.replace("_", "-")] = lines(
                panels,
                x_label="Step",
                y_label=words.get(quantity, "Mutual information estimate (nats)"),
            )
    return figures


def _gains(runs: list[Run], pairs: Mapping[str, Mapping[float, str]]) -> list[Panel]:
    panels = []
    for pair, sizes in pairs.items():
        drawn = []
        for arm in _DRAWN[2:]:
            gaps = {n: gap(runs, s, arm, "plain") for n, s in sizes.items()}
            known = {n: g for n, g in gaps.items() if g is not None}
            if len(known) > 1:
                drawn.append(line_of(arm, known))
        if drawn:
            panels.append(Panel(title=pair, lines=drawn))
    return panels


def _along_training(
    runs: list[Run], pairs: Mapping[str, Mapping[float, str]], quantity: str
) -> list[Panel]:
    panels = []
    for setting in (s for sizes in pairs.values() for s in sizes.values()):
        found: dict[str, dict[int, list[float]]] = {}
        for run in runs:
            for row in run.history if run.setting == setting else ():
                if row["split"] == SPLIT:
                    found.setdefault(run.arm, {}).setdefault(row["step"], []).append(row[quantity])
        drawn = [
            line_of(arm, {step: estimate(v) for step, v in sorted(by_step.items())})
            for arm, by_step in found.items()
        ]
        if drawn:
            panels.append(Panel(title=setting, lines=drawn))
    return panels


def _size(n: float) -> str:
    return f"{n:g}"


def _unit(sizes: Mapping[float, str]) -> str:
    share = any("/share=" in s for s in sizes.values())
    return "of the training images (share)" if share else "images a class"


_NOTES = (
    "Accuracies are those of the last step on test images, which chose nothing (at the scale cpu on "
    "5,000 of them, stratified; at the scale paper of the epoch with the best validation figure). A "
    "seed draws the training images, the new classifier and the order of batches, and has a source "
    "network of its own; arms of one seed share them, so differences are paired. Intervals are not "
    "corrected for the number of comparisons."
    "\n\n"
    "Every arm of every setting was tuned with the same number of trials, on held-out images of "
    "the target that are more than it trains on: with five images a class nobody has a thousand "
    "for validation, and all arms had the same luxury. Methods with a weight tried three learning "
    f"rates ({', '.join(f'{rate:g}' for rate in Budget().rates)} at the scale cpu, "
    f"{ARMS['delta'].pace:g} of that for DELTA) with three weights. AdaRand's "
    "rate for its means is one of three values in these trials; their range comes from a pilot with "
    "another network that had looked at "
    "test images of MNIST and Fashion-MNIST. Weights of AdaRand, RandReg and feature_norm "
    "are relative to the variance of the pretrained features (except at the scale paper). There is "
    "no weight decay in fine-tuning but what a method brings. Arms that run at the smallest size alone "
    "are compared there alone."
    "\n\n"
    "Norm, entropy and mutual information are of features of held-out images in evaluation mode; "
    "entropies are estimates up to a constant, which the mutual information H(g) - H(g|y) does not hold."
)
